"""A run's folder as training leaves it, small and untrained, for the report's tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedtalk_ray.config import save_config
from fedtalk_ray.data.shards import Manifest
from fedtalk_ray.data.speech import MEL_BINS, WINDOW_HOPS
from fedtalk_ray.evaluation.evaluate import evaluate_run, write_metrics
from fedtalk_ray.federation.history import HISTORY
from fedtalk_ray.model.autoencoder import load_autoencoder
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.schedule import make_scheduler
from fedtalk_ray.training.client_state import save_identity
from fedtalk_ray.training.export import export_model
from fedtalk_ray.training.local import LocalTrainer

LENGTH = 30
"""Frames of every clip: 1.2 s."""

CLIENTS = ("anna", "<script>alert(1)</script>", "c$1$")
"""Whom the records name: a name may be HTML or look like a formula."""

UNSEEN = "zoe"


@pytest.fixture(scope="session")
def plain_record() -> Callable[..., dict[str, Any]]:
    """A round's line as `actors.plain_round` and `rounds` write it; client k of n has share k / (1 + ... + n)."""

    def make(number: int, clients: tuple[str, ...] = CLIENTS, **more: Any) -> dict[str, Any]:
        total = sum(range(1, len(clients) + 1))
        losses = {"total": 1.25 / number, "diffusion": 1 / number, "tdc": 1 / number, "sync": 0.0}
        reports = [
            {
                "client": client,
                "samples": 300,
                "weight": float(place),
                "score": 0.9,
                "id_sim": 0.8,
                "temp_stab": 1.0,
                "losses": losses,
                "share": place / total,
            }
            for place, client in enumerate(clients, start=1)
        ]
        head = {"round": number, "aggregation": "plain", "update_norm": 0.7, "bytes_up": 400_000, "loss": losses}
        head |= {"counts": {"cohort": len(clients), "trained": len(clients)}}
        head |= {"stage_seconds": {"train": 12.0, "aggregate": 1.0, "evaluate": 4.0}}
        return head | {"clients": reports, "held_out_loss": 0.5 / number, "seconds": 20.0} | more

    return make


@pytest.fixture(scope="session")
def secure_record() -> Callable[..., dict[str, Any]]:
    """A round's line as `actors.exchange` and `rounds` write it, with noise."""

    def make(number: int, **more: Any) -> dict[str, Any]:
        stages = ("advertise", "share", "mask", "confirm", "unmask")
        return {
            "round": number,
            "aggregation": "secure",
            "survivors": 7,
            "clip_norm": 1.0,
            "clip_fraction": 0.25,
            "update_norm": 1.1,
            "noise_multiplier": 0.9,
            "epsilon": 1.5 * number,
            "epsilon_server": 4.0 * number,
            "counts": {"cohort": 9, "trained": 8, **dict.fromkeys(stages, 7)},
            "refused": {"late": 1, "slot died": 1},
            "bytes_up": 2_000_000,
            "stage_seconds": {"train": 40.0, **dict.fromkeys(stages, 0.5)},
            "held_out_loss": 0.4 / number,
            "seconds": 50.0,
        } | more

    return make


@pytest.fixture(scope="session")
def report_shards(tmp_path_factory: pytest.TempPathFactory, make_shards: Callable[..., Manifest]) -> Path:
    """Two clients and one identity nobody trains on."""
    folder = tmp_path_factory.mktemp("report") / "shards"
    make_shards(folder, {"anna": [LENGTH] * 3, "c$1$": [LENGTH] * 3, UNSEEN: [LENGTH] * 2}, unseen=(UNSEEN,))
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, make_config: Callable, wake_zeros: Callable) -> Path:
    """RUN/pipeline, RUN/adapters and anna's identity adapter, as a run of one round leaves them."""
    torch.manual_seed(0)
    sound = {"speech_hops": WINDOW_HOPS, "mel_bins": MEL_BINS}
    denoiser = TalkingHeadDenoiser(latent_channels=16, latent_size=8, widths=(16, 32), window=4, **sound)
    wake_zeros(denoiser)
    scheduler = make_scheduler(denoiser.config.prediction_type)
    pipeline = TalkingHeadPipeline(load_autoencoder("patch"), denoiser.eval(), scheduler)
    run = tmp_path_factory.mktemp("report") / "run"
    trainer = LocalTrainer(pipeline, make_config())
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.2)
    export_model(pipeline, trainer.model, "adapter", run)
    save_identity(trainer.model, run, "anna", 3)
    return run


@pytest.fixture(scope="session")
def measured_clips(exported: Path, report_shards: Path) -> dict[str, Any]:
    return evaluate_run(exported, report_shards, "test", limit=2)


@pytest.fixture(scope="session")
def build_run(
    report_shards: Path, exported: Path, make_config: Callable, measured_clips: dict[str, Any]
) -> Callable[..., Path]:
    """Writes a run's folder of these rounds, with these settings. measured: with a metrics.json of a few clips."""

    def build(run: Path, records: list[dict[str, Any]], measured: bool = False, **settings: Any) -> Path:
        run.mkdir()
        for part in ("pipeline", "adapters", "clients"):
            (run / part).symlink_to(exported / part)
        base = {"run": str(run), "shards": str(report_shards), "rounds": 3, "cohort": {"size": 9}}
        save_config(make_config(**base | settings), run / "config.yaml")
        (run / HISTORY).write_text("".join(json.dumps(record) + "\n" for record in records))
        if measured:
            write_metrics(measured_clips, run / "metrics.json")
        return run

    return build


@pytest.fixture
def make_run(tmp_path: Path, build_run: Callable[..., Path]) -> Callable[..., Path]:
    """`build_run` in this test's own folder."""
    return lambda records, name="run", **more: build_run(tmp_path / name, records, **more)
