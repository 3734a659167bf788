"""The local cluster and the small run of `tests/ray`."""

import os

from tests.ray.conftest import dashboard, make_config, pretrained, ray_cluster, shards
from tests.slow.conftest import browser

__all__ = ["LONG", "browser", "dashboard", "make_config", "pretrained", "ray_cluster", "shards"]

LONG = os.environ.get("FEDTALK_LONG") == "1"
"""Whether there are hours: the numbers of docs/ then, in place of those that `make nightly` has time for."""
