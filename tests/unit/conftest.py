"""Small models and windows that several test files build on. Torch is imported late: many tests do without it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
    from fedtalk_ray.model.pipeline import TalkingHeadPipeline
    from fedtalk_ray.settings import TrainConfig
    from fedtalk_ray.shards.format import Manifest
    from fedtalk_ray.shards.windows import WindowBatch


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Nothing here is to outlive a power cut; `tests/unit/test_outputs.py` asks whether files are synced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


TINY: dict[str, Any] = {"latent_channels": 4, "latent_size": 8, "widths": (16, 32), "window": 4}


def tiny_denoiser(seed: int = 0, awake: bool = True, **config: Any) -> TalkingHeadDenoiser:
    """A denoiser of 100,000 weights. `awake`: what starts at zero or one is drawn too, so that all of it has effect."""
    import torch

    from fedtalk_ray.model.denoiser import TalkingHeadDenoiser

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = TalkingHeadDenoiser(**TINY | config)
        if awake:
            wake(denoiser)
            for buffer in (denoiser.reference_std, denoiser.residual_std):
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
            denoiser.reference_mean.normal_()
    return denoiser.eval()


def wake(module: Any) -> None:
    """Draws every weight that is all zero."""
    for parameter in module.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.1)


def tiny_windows(count: int = 2, seed: int = 0, frames: int = 4) -> WindowBatch:
    """Windows of random latents of 4 channels and 8 x 8 cells."""
    import torch

    from fedtalk_ray.media.speech import LogMel
    from fedtalk_ray.shards.windows import WindowBatch

    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(count, frames + 1, 4, 8, 8, generator=generator)
    speech = torch.randn(count, frames, *LogMel.shape, generator=generator)
    return WindowBatch(latents[:, 1:], speech, latents[:, 0])


def tiny_pipeline(seed: int = 0, identity: bool = True, **config: Any) -> TalkingHeadPipeline:
    """A pipeline for faces of 32 x 32 pixels around `tiny_denoiser`."""
    import torch

    from fedtalk_ray.model.autoencoder import PatchAutoencoder
    from fedtalk_ray.model.identity import IdentityEncoder
    from fedtalk_ray.model.pipeline import TalkingHeadPipeline
    from fedtalk_ray.model.schedule import make_scheduler

    denoiser = tiny_denoiser(seed, **config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = PatchAutoencoder(luma_coefficients=2, chroma_coefficients=1, decoder_width=8).eval()
        encoder = IdentityEncoder(dimensions=8, widths=(8, 16)).eval() if identity else None
    return TalkingHeadPipeline(autoencoder, denoiser, make_scheduler(denoiser.config.prediction_type), encoder)


@pytest.fixture(scope="session")
def make_denoiser() -> Callable[..., TalkingHeadDenoiser]:
    return tiny_denoiser


@pytest.fixture
def bender() -> TalkingHeadDenoiser:
    """A denoiser that paints on the bent reference, with lip axes of its own."""
    import torch

    denoiser = tiny_denoiser(reference_lips=True, bends=(4, 2, 1), region="lower face")
    torch.nn.init.normal_(denoiser.lip_axes, std=0.2, generator=torch.Generator().manual_seed(0))
    denoiser.lip_std.copy_(torch.tensor([0.05, 0.04, 0.03, 0.02, 0.02, 0.01]))
    return denoiser


@pytest.fixture(scope="session")
def wake_zeros() -> Callable[[Any], None]:
    return wake


@pytest.fixture(scope="session")
def make_windows() -> Callable[..., WindowBatch]:
    return tiny_windows


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., TalkingHeadPipeline]:
    return tiny_pipeline


def tiny_config(**more: Any) -> TrainConfig:
    """Settings for `tiny_pipeline`; keyword arguments replace sections' keys, as in local={"steps": 1}."""
    from fedtalk_ray.config import parse_config

    tree: dict[str, Any] = {
        "run": "run",
        "shards": "shards",
        "pretrained": "pretrained",
        "phases": ["faces"],
        "local": {"steps": 3, "batch_size": 2, "identity_steps": 2, "score_windows": 2, "learning_rate": 0.01}
        | {"schedule": "constant", "vary": False, "autocast": False},
        "adapter": {"rank": 2, "alpha": 4.0, "identity_rank": 2},
    }
    for key, value in more.items():
        tree[key] = tree[key] | value if isinstance(value, dict) and key in tree else value
    return parse_config(tree, "test")


def tiny_landmarks(level: Any, seed: int = 0) -> Any:
    """68 points of a face whose mouth opens with `level` [T], float32 [T, 68, 2], with a little unrest."""
    import numpy as np

    rng = np.random.default_rng(seed)
    points = np.tile(rng.uniform(0.3, 0.7, (68, 2)), (len(level), 1, 1)) + rng.normal(0, 1e-3, (len(level), 68, 2))
    points[:, 36:42, 0] -= 0.2
    points[:, 42:48, 0] += 0.2
    points[:, 55:60, 1] += 0.05 * np.asarray(level)[:, None]
    points[:, 65:68, 1] += 0.05 * np.asarray(level)[:, None]
    return points.astype(np.float32)


def tiny_shards(
    folder: Path,
    clips: dict[str, list[int]],
    side: int = 32,
    unseen: tuple[str, ...] | None = None,
    encoder: str = "patch",
) -> Manifest:
    """Shards of smooth pictures whose contrast follows the loudness: for every identity, clips of so many frames.

    encoder: the name of one of our own autoencoders.
    """
    import numpy as np

    from fedtalk_ray.media.speech import LogMel, speech_windows
    from fedtalk_ray.model.autoencoder import encode_frames, encoder_fingerprint, load_autoencoder
    from fedtalk_ray.shards.format import Manifest, ShardWriter

    autoencoder = load_autoencoder(encoder)
    shapes = {
        "frames": [side, side, 3],
        "latents": list(encode_frames(autoencoder, np.zeros((1, side, side, 3), np.uint8)).shape[1:]),
        "speech": list(LogMel.shape),
        "waveform": [],
    }
    manifest = Manifest("folder", side, 25, 16_000, encoder, encoder_fingerprint(autoencoder), shapes)
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, manifest, None if unseen is None else set(unseen))
    y, x = np.mgrid[:side, :side] / side
    for who, lengths in enumerate(clips.values()):
        for number, length in enumerate(lengths):
            rng = np.random.default_rng([who, number])
            level = np.abs(np.sin(np.arange(length) * rng.uniform(0.3, 0.6) + rng.uniform(0, 6)))
            audio = rng.normal(0, 0.1, (length, 640)) * (0.02 + level[:, None])
            lift = (0.5 + level)[:, None, None, None]
            waves = np.sin((1 + who) * x[..., None] + (2 + who) * y[..., None] + np.arange(3)) * lift
            audio, frames = audio.ravel(), (128 + 80 * waves).astype(np.uint8)
            arrays = {
                "frames": frames,
                "latents": encode_frames(autoencoder, frames).astype(np.float16),
                "speech": speech_windows(audio.astype(np.float32), length).astype(np.float16),
                "waveform": (audio * 32767).clip(-32767, 32767).astype(np.int16),
                "landmarks": tiny_landmarks(level, who),
            }
            writer.add(list(clips)[who], f"clip{number}", arrays)
    return writer.close()


@pytest.fixture(scope="session")
def make_config() -> Callable[..., TrainConfig]:
    return tiny_config


@pytest.fixture(scope="session")
def make_shards() -> Callable[..., Manifest]:
    return tiny_shards


# A run's folder as training leaves it, small and untrained

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
    import torch

    from fedtalk_ray.media.speech import MEL_BINS, WINDOW_HOPS
    from fedtalk_ray.model import adapters
    from fedtalk_ray.model.autoencoder import load_autoencoder
    from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
    from fedtalk_ray.model.pipeline import TalkingHeadPipeline
    from fedtalk_ray.model.released import release_model
    from fedtalk_ray.model.schedule import make_scheduler
    from fedtalk_ray.runs.folder import RunFolder
    from fedtalk_ray.training.local import LocalTrainer

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
    release_model(RunFolder(run), 3, pipeline, trainer.model, "adapter")
    RunFolder(run).client("anna").keep_adapter(
        3, lambda place: adapters.save_adapter(trainer.model, adapters.IDENTITY, place)
    )
    return run


@pytest.fixture(scope="session")
def measured_clips(exported: Path, report_shards: Path) -> dict[str, Any]:
    from fedtalk_ray.evaluation.evaluate import evaluate_run

    return evaluate_run(exported, report_shards, "test", limit=2)


@pytest.fixture(scope="session")
def build_run(
    report_shards: Path, exported: Path, make_config: Callable, measured_clips: dict[str, Any]
) -> Callable[..., Path]:
    """Writes a run's folder of these rounds, with these settings. measured: with a metrics.json of a few clips."""
    import json

    from fedtalk_ray.config import save_config
    from fedtalk_ray.evaluation.evaluate import write_metrics
    from fedtalk_ray.runs.folder import RunFolder

    def build(run: Path, records: list[dict[str, Any]], measured: bool = False, **settings: Any) -> Path:
        run.mkdir()
        for part in ("pipeline", "adapters"):
            (run / part).symlink_to(exported / part)
        RunFolder(run).clients_folder.symlink_to(RunFolder(exported).clients_folder)
        base = {"run": str(run), "shards": str(report_shards), "rounds": 3, "cohort": {"size": 9}}
        save_config(make_config(**base | settings), run / "config.yaml")
        (run / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if measured:
            write_metrics(measured_clips, run / "metrics.json")
        return run

    return build


@pytest.fixture
def make_run(tmp_path: Path, build_run: Callable[..., Path]) -> Callable[..., Path]:
    """`build_run` in this test's own folder."""
    return lambda records, name="run", **more: build_run(tmp_path / name, records, **more)
