"""Pretraining, first part: the decoder learns the detail that the fixed encoder drops."""

from collections.abc import Iterator

import numpy as np
import torch
from diffusers import ModelMixin

from fedtalk_ray.model.autoencoder import PatchAutoencoder, frames_to_pixels, pixels_to_frames
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.optimise import cosine, optimise


def train_decoder(
    autoencoder: PatchAutoencoder,
    pieces: list[Piece],
    progress: Iterator[float],
    rng: np.random.Generator,
    device: str = "cpu",
) -> None:
    """Teaches the decoder the detail that the fixed encoder drops (mean absolute error); latents do not change."""
    autoencoder.to(device).decoder.requires_grad_(True)
    optimiser = torch.optim.AdamW(autoencoder.decoder.parameters(), lr=1e-3)
    for done in progress:
        pixels = frames_to_pixels(random_frames(pieces, 8, rng)).to(device)
        # Generated latents are never exact: a little noise teaches the decoder to forgive.
        latents = autoencoder.encode(pixels).latents
        latents = latents + 0.02 * torch.from_numpy(rng.standard_normal(latents.shape, np.float32)).to(device)
        loss = (autoencoder.decode(latents).sample - pixels).abs().mean()
        optimise(optimiser, autoencoder.decoder, loss, 1e-3 * cosine(done))
    autoencoder.to("cpu").decoder.requires_grad_(False)


def autoencoder_psnr(autoencoder: ModelMixin, frames: np.ndarray) -> float:
    """PSNR in dB of frames uint8 [T, S, S, 3] through the autoencoder and back: the ceiling of everything generated."""
    with torch.inference_mode():
        encoded = autoencoder.encode(frames_to_pixels(frames))
        code = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        back = pixels_to_frames(autoencoder.decode(code).sample)
    return float(-10 * np.log10(np.mean((back.astype(float) - frames) ** 2) / 255**2))


def random_frames(pieces: list[Piece], count: int, rng: np.random.Generator) -> np.ndarray:
    chosen = [pieces[int(index)] for index in rng.integers(len(pieces), size=count)]
    return np.stack([piece.frames[int(rng.integers(len(piece.frames)))] for piece in chosen])
