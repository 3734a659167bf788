"""Sixty kills: the same checks as in tests/ray/test_chaos.py, for longer."""

from pathlib import Path

import pytest

from tests.ray.conftest import make_config, pretrained, ray_cluster, shards  # noqa: F401 (fixtures)
from tests.ray.own_cluster import OwnCluster
from tests.ray.test_chaos import Make, check_plain, check_private, cluster  # noqa: F401 (a fixture)


@pytest.mark.timeout(3600)
def test_thirty_six_kills_of_a_plain_run(make_config: Make, cluster: OwnCluster, tmp_path: Path) -> None:  # noqa: F811
    check_plain(make_config, cluster, tmp_path, {"slot": 14, "server": 8, "node": 6, "driver": 8}, rounds=36)


@pytest.mark.timeout(3600)
def test_twenty_four_kills_of_a_private_run(make_config: Make, cluster: OwnCluster, tmp_path: Path) -> None:  # noqa: F811
    check_private(make_config, cluster, tmp_path, {"slot": 9, "server": 8, "driver": 7}, rounds=24)
