"""Clips that are known residuals, and what `calibration` is told of them."""

from collections.abc import Callable

import numpy as np
import torch

from fedtalk_ray.model.autoencoder import decode_latents, encode_frames
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.shards.format import Piece

SIDE = 8
"""Cells a side."""

Known = Callable[[list[Piece], list[torch.Tensor], list[torch.Tensor]], None]


def clips(pipeline: TalkingHeadPipeline, residuals: list[torch.Tensor]) -> list[Piece]:
    """Pieces whose frames are what the autoencoder makes of random references plus these residuals."""
    pieces = []
    for number, residual in enumerate(residuals):
        rng = np.random.default_rng(number)
        face = rng.integers(60, 200, (1, 4 * SIDE, 4 * SIDE, 3), dtype=np.uint8)
        reference = torch.from_numpy(encode_frames(pipeline.autoencoder, face))
        latents = pipeline.denoiser.from_residual(residual[None], reference)[0]
        frames = decode_latents(pipeline.autoencoder, latents)
        frames[0] = face[0]
        sound = np.zeros((len(residual), 44, 40), np.float16)
        pieces.append(Piece("s1", str(number), 0, frames, latents.numpy(), sound, np.zeros(0, np.int16)))
    return pieces
