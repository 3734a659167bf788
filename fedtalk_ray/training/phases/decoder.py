"""Phase `decoder`: the decoder learns the detail that the fixed encoder drops; latents do not change."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from diffusers import ModelMixin

from fedtalk_ray.model.autoencoder import (
    PatchAutoencoder,
    decode_pixels,
    encode_pixels,
    frames_to_pixels,
    pixels_to_frames,
    scaling_factor,
    sees_reference,
)
from fedtalk_ray.recipe import DecoderConfig
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.optimise import Loss
from fedtalk_ray.training.phases.module_steps import ModuleSteps, of_pieces

NOISE = 0.02
"""Generated latents are never exact: a little noise teaches the decoder to forgive."""


def decoder_phase(autoencoder: PatchAutoencoder, config: DecoderConfig, device: str = "cpu") -> ModuleSteps:
    losses = partial(decoder_losses, autoencoder, config.batch_size, device)
    return ModuleSteps(
        autoencoder, config, of_pieces(("frames",), losses), device, lambda name: name.startswith("decoder.")
    )


def decoder_losses(
    autoencoder: PatchAutoencoder, count: int, device: str, pieces: list[Piece], rng: np.random.Generator
) -> Iterator[Loss]:
    """Mean absolute errors of so many random frames each."""
    while True:
        pixels = frames_to_pixels(random_frames(pieces, count, rng)).to(device)
        latents = autoencoder.encode(pixels).latents
        latents = latents + NOISE * torch.from_numpy(rng.standard_normal(latents.shape, np.float32)).to(device)
        loss = (autoencoder.decode(latents).sample - pixels).abs().mean()
        yield loss, {"pixels": float(loss.detach())}


def autoencoder_psnr(autoencoder: ModelMixin, frames: np.ndarray) -> float:
    """PSNR in dB of frames uint8 [T, S, S, 3] through the autoencoder and back: the ceiling of everything generated.

    Of one that takes detail from a reference it is what latents alone say of the part that they are of.
    """
    with torch.inference_mode():
        pixels = frames_to_pixels(frames)
        latents = encode_pixels(autoencoder, pixels)
        if sees_reference(autoencoder):
            true, made = autoencoder.window(pixels), autoencoder.soft(latents / scaling_factor(autoencoder))
        else:
            true, made = pixels, decode_pixels(autoencoder, latents)
        error = pixels_to_frames(made).astype(float) - pixels_to_frames(true)
    return float(-10 * np.log10(np.mean(error**2) / 255**2))


def random_frames(pieces: list[Piece], count: int, rng: np.random.Generator) -> np.ndarray:
    chosen = [pieces[int(index)] for index in rng.integers(len(pieces), size=count)]
    return np.stack([piece.frames[int(rng.integers(len(piece.frames)))] for piece in chosen])
