"""The pipeline a run starts from: a pretrained one, or an untrained one whose units the clients fix together."""

from collections.abc import Iterable

import numpy as np
import torch

from fedtalk_ray.config import TrainConfig
from fedtalk_ray.data.shards import Manifest, Piece
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, fingerprint, load_pipeline, new_pipeline


def build_pipeline(config: TrainConfig, manifest: Manifest) -> TalkingHeadPipeline:
    """Loads `config.pretrained`, or makes an untrained pipeline around the shards' autoencoder, from the run's seed.

    Raises `ShardError` when the shards were encoded by another autoencoder than the pipeline's.
    """
    if config.pretrained is not None:
        pipeline = load_pipeline(config.pretrained)
        manifest.check_autoencoder(fingerprint(pipeline), config.pretrained)
        return pipeline
    channels, size, _ = manifest.shapes["latents"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        pipeline = new_pipeline(manifest.autoencoder, channels, size)
    manifest.check_autoencoder(fingerprint(pipeline), manifest.autoencoder)
    return pipeline


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
