"""Small models and windows that several test files build on. Torch is imported late: many tests do without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fedtalk_ray.config import TrainConfig
    from fedtalk_ray.data.shards import Manifest
    from fedtalk_ray.data.windows import WindowBatch
    from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
    from fedtalk_ray.model.pipeline import TalkingHeadPipeline

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

    from fedtalk_ray.data.speech import LogMel
    from fedtalk_ray.data.windows import WindowBatch

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
        "local": {"steps": 3, "batch_size": 2, "identity_steps": 2, "score_windows": 2, "learning_rate": 0.01},
        "adapter": {"rank": 2, "alpha": 4.0, "identity_rank": 2},
    }
    for key, value in more.items():
        tree[key] = tree[key] | value if isinstance(value, dict) and key in tree else value
    return parse_config(tree, "test")


def tiny_shards(
    folder: Path, clips: dict[str, list[int]], side: int = 32, unseen: tuple[str, ...] | None = None
) -> Manifest:
    """Shards of smooth pictures whose contrast follows the loudness: for every identity, clips of so many frames.

    Encoded by the default "patch" autoencoder.
    """
    import numpy as np

    from fedtalk_ray.data.shards import Manifest, ShardWriter
    from fedtalk_ray.data.speech import LogMel, speech_windows
    from fedtalk_ray.model.autoencoder import encode_frames, encoder_fingerprint, load_autoencoder

    autoencoder = load_autoencoder("patch")
    shapes = {
        "frames": [side, side, 3],
        "latents": [16, side // 4, side // 4],
        "speech": list(LogMel.shape),
        "waveform": [],
    }
    manifest = Manifest("folder", side, 25, 16_000, "patch", encoder_fingerprint(autoencoder), shapes)
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
            }
            writer.add(list(clips)[who], f"clip{number}", arrays)
    return writer.close()


@pytest.fixture(scope="session")
def make_config() -> Callable[..., TrainConfig]:
    return tiny_config


@pytest.fixture(scope="session")
def make_shards() -> Callable[..., Manifest]:
    return tiny_shards
