"""The pipeline a run starts from: a pretrained one, or an untrained one whose units the clients fix together."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from fedtalk_ray.errors import ShardError
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser, bare_denoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, fingerprint, load_pipeline, new_pipeline
from fedtalk_ray.shards.format import Manifest, Piece


def build_pipeline(pretrained: str | None, seed: int, manifest: Manifest) -> TalkingHeadPipeline:
    """Loads the pipeline `pretrained`, or makes an untrained one around the shards' autoencoder, drawn from `seed`.

    Raises `ShardError` when the shards were encoded by another autoencoder than the pipeline's.
    """
    if pretrained is not None:
        pipeline = load_pipeline(pretrained)
        check_fits(manifest, pipeline, pretrained)
        return pipeline
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return untrained_pipeline(manifest)


def untrained_pipeline(manifest: Manifest, **settings: Any) -> TalkingHeadPipeline:
    """A pipeline for what the shards hold: their autoencoder, sound features and identity embeddings.

    settings: of `TalkingHeadDenoiser`. Raises `ShardError` when the shards' autoencoder is no longer the one that they
    were encoded with.
    """
    channels, size, _ = manifest.shapes["latents"]
    hops, bins = manifest.shapes["speech"]
    conditions = {"speech": manifest.speech, "speech_hops": hops, "mel_bins": bins}
    conditions |= {"identity": manifest.identity, "identity_dimensions": manifest.identity_dimensions}
    pipeline = new_pipeline(manifest.autoencoder, channels, size, **conditions | settings)
    manifest.check_autoencoder(fingerprint(pipeline), manifest.autoencoder)
    return pipeline


def check_fits(manifest: Manifest, pipeline: TalkingHeadPipeline, where: str) -> None:
    """Raises `ShardError` when the pipeline at `where` was made for other latents, sound or faces than the shards'."""
    manifest.check_autoencoder(fingerprint(pipeline), where)
    settings = bare_denoiser(pipeline.denoiser).config
    manifest.check_conditions(settings.speech, settings.identity, where)
    hops, bins = manifest.shapes["speech"]
    if (hops, bins) != (settings.speech_hops, settings.mel_bins):
        raise ShardError(
            f"shards hold sound windows of {hops} x {bins}, but {where} hears {settings.speech_hops} x "
            f"{settings.mel_bins}: prepare the shards again"
        )
    if manifest.shapes["latents"][1] != settings.latent_size:
        raise ShardError(
            f"shards hold faces of {manifest.frame_size} pixels ({manifest.shapes['latents'][1]} latent cells a side), "
            f"but {where} makes {settings.latent_size} cells: prepare the shards with another --size"
        )


def statistics_of(pieces: Iterable[Piece]) -> np.ndarray:
    """Sums float64 [1 + 3 * C] over one client's latents: cells, then per channel sum, squares, squared residuals.

    Residuals are taken between frames half a piece apart, which is what a random reference is on average.
    """
    total: np.ndarray | float = 0.0
    for piece in pieces:
        latents = piece.latents[::5].astype(np.float64)
        residuals = latents - np.roll(latents, len(latents) // 2, axis=0)
        axes = (0, 2, 3)
        cells = [latents[:, 0].size]
        total = total + np.concatenate([cells, latents.sum(axes), (latents**2).sum(axes), (residuals**2).sum(axes)])
    return np.asarray(total)


def set_statistics(denoiser: TalkingHeadDenoiser, sums: np.ndarray) -> None:
    """Sets the units from `statistics_of` summed over clients."""
    cells, (first, second, residual) = sums[0], sums[1:].reshape(3, -1)
    mean = first / cells
    std = np.sqrt(np.maximum(second / cells - mean**2, 1e-6))
    for buffer, values in (
        (denoiser.reference_mean, mean),
        (denoiser.reference_std, std),
        (denoiser.residual_std, np.sqrt(np.maximum(residual / cells, 1e-6))),
    ):
        buffer.copy_(torch.from_numpy(values.astype(np.float32)))
