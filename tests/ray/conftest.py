"""One real Ray cluster for all tests in this folder; starting one takes seconds, so it is shared."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.data
from ray.data import ExecutionResources
from safetensors.numpy import load_file

from fedtalk_ray.config import parse_config
from fedtalk_ray.runs.checkpoints import load_checkpoint
from fedtalk_ray.settings import TrainConfig
from tests.ray.warm_workers import warm_python

Make = Callable[..., TrainConfig]

ALONE = {"count": 1}
"""One slot, which starts sooner than two."""

# `make test` runs these in the background, where a shell has Ctrl-C ignored: the cluster would live on.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def dashboard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local cluster of 4 CPUs and 2 logical GPUs (no device is needed), shut down after the last test; the address of
    its dashboard, which is there for tests/nightly alone: it takes seconds.

    Workers run in this folder and import the installed package, and nothing is packed.
    """
    with warm_python(tmp_path_factory.mktemp("warm")) as python:
        # The python of jobs is the one that is found first.
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        context = ray.init(
            address="local",  # never a cluster that happens to run on this machine
            num_cpus=4,
            num_gpus=2,
            object_store_memory=256 * 1024**2,
            include_dashboard=any(item.path.parent.name == "nightly" for item in request.session.items),
            _system_config={"metrics_report_interval_ms": 2000},
            log_to_driver=False,
            logging_level=logging.WARNING,
            namespace="fedtalk-tests",
            runtime_env={"py_executable": python},
        )
        # Two readers of clips show what four do, their order too.
        ray.data.DataContext.get_current().execution_options.resource_limits = ExecutionResources(cpu=2, gpu=1)
        try:
            yield f"http://{context.dashboard_url}"
        finally:
            ray.shutdown()


@pytest.fixture(scope="session")
def ray_cluster(dashboard: str) -> None:
    """This process is connected to the cluster."""


@pytest.fixture(scope="session")
def shards(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven drawn clients with four clips each and one unseen identity, 32 x 32 pixels, prepared by the pipeline."""
    from fedtalk_ray.corpora.listing import list_synthetic
    from fedtalk_ray.shards.prepare import prepare

    out = tmp_path_factory.mktemp("data") / "shards"
    prepare("synthetic", list_synthetic(8, 4, seed=3), out, size=32, autoencoder="patch", unseen=1)
    return out


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained pipeline for those shards, with an identity encoder, saved as diffusers saves it."""
    import torch

    from fedtalk_ray.model.autoencoder import load_autoencoder
    from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
    from fedtalk_ray.model.identity import IdentityEncoder
    from fedtalk_ray.model.pipeline import TalkingHeadPipeline
    from fedtalk_ray.model.schedule import make_scheduler

    folder = tmp_path_factory.mktemp("model") / "pretrained"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = TalkingHeadDenoiser(latent_channels=16, latent_size=8, widths=(16, 32), window=4)
        encoder = IdentityEncoder(dimensions=8, widths=(8, 16))
    pipeline = TalkingHeadPipeline(load_autoencoder("patch"), denoiser, make_scheduler("sample"), encoder)
    pipeline.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def make_config(shards: Path, pretrained: Path) -> Make:
    """A run's configuration on the small shards: quick, everything at work."""

    def make(run: Path, **changes: Any) -> TrainConfig:
        tree: dict[str, Any] = {
            "run": str(run),
            "shards": str(shards),
            "pretrained": str(pretrained),
            "phases": ["faces"],
            "rounds": 3,
            "aggregation": "plain",
            "cohort": {"size": 2},
            "local": {"steps": 2, "identity_steps": 1, "batch_size": 2, "score_windows": 2}
            | {"schedule": "constant", "vary": False, "true_lips": 0, "autocast": False},
            "evaluation": {"sample_every": 100, "windows": 1, "clients": 2},
            "server": {"momentum": 0.5},
        }
        return parse_config(tree | changes, "test")

    return make


def parameters(config: TrainConfig, number: int | None = None) -> np.ndarray:
    """The shared ones of a run's newest checkpoint, or after a round whose checkpoint is there still."""
    if number is not None:
        arrays = Path(config.run) / "checkpoints" / f"round-{number:05d}" / "arrays.safetensors"
        return load_file(arrays)["parameters"]
    checkpoint = load_checkpoint(Path(config.run) / "checkpoints")
    assert checkpoint is not None
    return checkpoint.parameters
