"""One real Ray cluster for all tests in this folder; starting one takes seconds, so it is shared."""

import logging
from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster of 4 CPUs and 2 logical GPUs (no device is needed), shut down after the last test.

    No runtime environment is set: workers run in this folder and import the installed package, and nothing is packed.
    """
    ray.init(
        address="local",  # never a cluster that happens to run on this machine
        num_cpus=4,
        num_gpus=2,
        object_store_memory=256 * 1024**2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        namespace="fedtalk-tests",
    )
    try:
        yield
    finally:
        ray.shutdown()
