"""Pretraining, second part: the identity encoder learns who is who."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from fedtalk_ray.model.autoencoder import frames_to_pixels
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.optimise import cosine, optimise
from fedtalk_ray.training.train_decoder import random_frames


def train_identity(
    encoder: IdentityEncoder,
    pieces: list[Piece],
    progress: Iterator[float],
    rng: np.random.Generator,
    device: str = "cpu",
) -> None:
    """Supervised contrastive training (Khosla et al. 2020): frames of one person attract, of two people repel."""
    by_person: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_person.setdefault(piece.client, []).append(piece)
    people = sorted(by_person)
    encoder.to(device)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=0.01)
    encoder.requires_grad_(True)
    for done in progress:
        chosen = rng.choice(len(people), min(12, len(people)), replace=False)
        pixels = torch.cat([_augmented(random_frames(by_person[people[index]], 3, rng), rng) for index in chosen])
        labels = torch.from_numpy(np.repeat(chosen, 3)).to(device)
        similarity = encoder(pixels.to(device))
        logits = similarity @ similarity.T / 0.1
        other = ~torch.eye(len(labels), dtype=torch.bool, device=device)
        same = (labels[:, None] == labels[None]) & other
        log_share = logits - torch.logsumexp(logits.masked_fill(~other, -torch.inf), dim=1, keepdim=True)
        optimise(optimiser, encoder, -log_share[same].mean(), 2e-3 * cosine(done))
    encoder.to("cpu").requires_grad_(False)


def _augmented(frames: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Mirrored, relit and shifted by a few pixels: what must not change who somebody is."""
    pixels = frames_to_pixels(frames)
    if rng.random() < 0.5:
        pixels = pixels.flip(3)
    gain = torch.from_numpy(rng.normal(1, 0.15, (len(pixels), 3, 1, 1)).astype(np.float32))
    pixels = F.pad(pixels * gain, (3, 3, 3, 3), mode="replicate")
    top, left = rng.integers(0, 7, 2)
    return pixels[:, :, top : top + frames.shape[1], left : left + frames.shape[2]]
