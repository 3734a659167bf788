"""The local cluster and the small run of `tests/ray`."""

from tests.ray.conftest import make_config, pretrained, ray_cluster, shards

__all__ = ["make_config", "pretrained", "ray_cluster", "shards"]
