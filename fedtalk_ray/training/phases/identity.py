"""Phase `identity`: the identity encoder learns who is who. It takes several people to tell apart, so a client of one
has nothing to say: the phase belongs where clients hold many, as a single one that holds everything does."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from fedtalk_ray.errors import NothingToGive
from fedtalk_ray.model.autoencoder import frames_to_pixels
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.recipe import IdentityConfig
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.optimise import Loss
from fedtalk_ray.training.phases.decoder import random_frames
from fedtalk_ray.training.phases.module_steps import ModuleSteps, of_pieces

FRAMES = 3
"""Frames of each person in a step."""


Seen = Callable[[torch.Tensor], torch.Tensor]
"""Pixels [B, 3, S, S] as a critic will see such pictures."""


def identity_phase(
    encoder: IdentityEncoder, config: IdentityConfig, device: str = "cpu", seen: Seen = lambda pixels: pixels
) -> ModuleSteps:
    losses = partial(identity_losses, encoder, config.batch_size, device, seen)
    return ModuleSteps(encoder, config, of_pieces(("client", "frames"), losses), device)


def identity_losses(
    encoder: IdentityEncoder, most: int, device: str, seen: Seen, pieces: list[Piece], rng: np.random.Generator
) -> Iterator[Loss]:
    """Supervised contrastive losses (Khosla et al. 2020): frames of one person attract, of two people repel."""
    by_person: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_person.setdefault(piece.client, []).append(piece)
    people = sorted(by_person)
    if len(people) < 2:
        raise NothingToGive("it holds one person, and who is who takes two to tell apart")
    while True:
        chosen = rng.choice(len(people), min(most, len(people)), replace=False)
        pixels = torch.cat([_augmented(random_frames(by_person[people[index]], FRAMES, rng), rng) for index in chosen])
        labels = torch.from_numpy(np.repeat(chosen, FRAMES)).to(device)
        similarity = encoder(seen(pixels.to(device)))
        logits = similarity @ similarity.T / 0.1
        other = ~torch.eye(len(labels), dtype=torch.bool, device=device)
        same = (labels[:, None] == labels[None]) & other
        log_share = logits - torch.logsumexp(logits.masked_fill(~other, -torch.inf), dim=1, keepdim=True)
        loss = -log_share[same].mean()
        yield loss, {"identity": float(loss.detach())}


def _augmented(frames: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Mirrored, relit and shifted by a few pixels: what must not change who somebody is."""
    pixels = frames_to_pixels(frames)
    if rng.random() < 0.5:
        pixels = pixels.flip(3)
    gain = torch.from_numpy(rng.normal(1, 0.15, (len(pixels), 3, 1, 1)).astype(np.float32))
    pixels = F.pad(pixels * gain, (3, 3, 3, 3), mode="replicate")
    top, left = rng.integers(0, 7, 2)
    return pixels[:, :, top : top + frames.shape[1], left : left + frames.shape[2]]
