"""The clients of `tests/unit/training`, and a finished run."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from fedtalk_ray.config import save_config
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from tests.unit.training.conftest import all_rounds, make_task

__all__ = ["all_rounds", "make_task"]


@pytest.fixture(scope="session")
def finished(make_shards: Callable, make_config: Callable, wake_zeros: Callable, tmp_path_factory: Any) -> TrainConfig:
    """The settings of a run after round 2, as `fedtalk train` leaves it, whose client s1 has an adapter and s2 none."""
    import torch

    from fedtalk_ray.model import adapters
    from fedtalk_ray.model.autoencoder import load_autoencoder
    from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
    from fedtalk_ray.model.pipeline import TalkingHeadPipeline
    from fedtalk_ray.model.released import release_model
    from fedtalk_ray.model.schedule import make_scheduler
    from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
    from fedtalk_ray.training.local import LocalTrainer

    place = tmp_path_factory.mktemp("personalize")
    make_shards(place / "shards", {"s1": [40, 30, 30], "s2": [30, 30], "s3": [30]})
    config, run = make_config(run=str(place / "run"), shards=str(place / "shards")), place / "run"
    torch.manual_seed(0)
    denoiser = TalkingHeadDenoiser(latent_channels=16, latent_size=8, widths=(16, 32), window=4).eval()
    wake_zeros(denoiser)
    pipeline = TalkingHeadPipeline(load_autoencoder("patch"), denoiser, make_scheduler("sample"))
    trainer = LocalTrainer(pipeline, config)
    run.mkdir()
    checkpoint = Checkpoint(2, adapters.to_vector(trainer.shared()), {})
    save_checkpoint(run / "checkpoints", checkpoint, config_fingerprint(config))
    release_model(RunFolder(run), 2, pipeline, trainer.model, "adapter")
    RunFolder(run).client("s1").keep_adapter(
        2, lambda place: adapters.save_adapter(trainer.model, adapters.IDENTITY, place)
    )
    return config


@pytest.fixture
def run(finished: TrainConfig, tmp_path: Path) -> Path:
    """This test's own copy of it."""
    for part in ("run", "run.clients"):
        copytree(Path(finished.run).parent / part, tmp_path / part)
    save_config(finished.model_copy(update={"run": str(tmp_path / "run")}), tmp_path / "run" / "config.yaml")
    return tmp_path / "run"
