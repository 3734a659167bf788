"""Phase `sync`: the sync network learns whether lips and sound belong together; and how well it does is measured.

The fewer the clips, the more it needs them varied: after 600 steps on 49 GRID clips, unseen speakers' windows fit their
own sound better than a shifted one in 75% of pairs, and in 87% with eight varied copies of each clip (`vary_clips`).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin

from fedtalk_ray.errors import NothingToGive
from fedtalk_ray.media.speech import LOG_MEL
from fedtalk_ray.model.autoencoder import encode_pixels
from fedtalk_ray.model.sync import SPAN, SyncNetwork, find_offset
from fedtalk_ray.recipe import SyncConfig
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.augment import View, vary_speech
from fedtalk_ray.training.optimise import Loss
from fedtalk_ray.training.phases.module_steps import ModuleSteps, of_pieces

FRAMES = 15
"""Frames of a stretch; a step of 16 has 176 windows, each with about 170 wrong sounds."""

MIN_SHIFT = 3
"""Frames (0.12 s) from which on a shifted sound counts as wrong; nearer ones are neither right nor wrong."""

COPIES, MOST_CLIPS = 8, 400
"""Varied copies of each clip beside itself, as long as there are not more than so many clips in all."""


def sync_phase(network: SyncNetwork, autoencoder: ModelMixin, config: SyncConfig, device: str = "cpu") -> ModuleSteps:
    """Trains on stretches of a client's clips and varied copies of them; the latents' units are its own."""
    losses = partial(sync_losses, network, autoencoder, config.batch_size, device)
    columns = ("client", "clip", "begin", "frames", "latents", "speech")
    return ModuleSteps(network, config, of_pieces(columns, losses), device)


def sync_losses(
    network: SyncNetwork,
    autoencoder: ModelMixin,
    count: int,
    device: str,
    pieces: list[Piece],
    rng: np.random.Generator,
) -> Iterator[Loss]:
    """`pair_loss` of so many random stretches each, with a random frame of its piece as each one's reference.

    Pieces shorter than `FRAMES` are left out; raises `NothingToGive` when none is left.
    """
    usable = [piece for piece in pieces if len(piece.latents) >= FRAMES]
    if not usable:
        raise NothingToGive(f"all its clips are shorter than the {FRAMES} frames that the sync network needs")
    names = sorted({(piece.client, piece.clip) for piece in usable})
    numbers = {name: number for number, name in enumerate(names)}
    copies = [vary_clips(usable, autoencoder, rng) for _ in range(min(COPIES, MOST_CLIPS // len(usable)))]
    usable = [*usable, *itertools.chain(*copies)]
    log_mel = network.config.speech == LOG_MEL
    units = network.residual_std.cpu().numpy().copy()
    while True:
        latents, sounds, references, clips, begins = [], [], [], [], []
        for index in rng.integers(len(usable), size=count):
            piece = usable[index]
            begin = int(rng.integers(len(piece.latents) - FRAMES + 1))
            stretch = slice(begin, begin + FRAMES)
            reference = piece.latents[int(rng.integers(len(piece.latents)))].astype(np.float32)
            latents.append(_vary_latents(network, units, piece.latents[stretch].astype(np.float32), reference, rng))
            sounds.append(vary_speech(piece.speech[stretch].astype(np.float32), rng, log_mel))
            references.append(reference)
            clips.append(numbers[piece.client, piece.clip])
            begins.append(piece.begin + begin)
        seen, heard, first = (torch.from_numpy(np.stack(part)).to(device) for part in (latents, sounds, references))
        mouth, sound = network.embed_mouth(seen, first), network.embed_speech(heard)
        loss = pair_loss(network, mouth, sound, torch.tensor(clips).to(device), torch.tensor(begins).to(device))
        yield loss, {"sync": float(loss.detach())}


def pair_loss(
    network: SyncNetwork, mouth: torch.Tensor, sound: torch.Tensor, clips: torch.Tensor, begins: torch.Tensor
) -> torch.Tensor:
    """InfoNCE plus the sigmoid loss over all pairs of mouths and sounds [B, W, dimensions] of a batch; a scalar.

    clips: int [B], the same number for stretches of the same clip. begins: int [B], the frame of the clip at which each
    stretch begins. Right: the same stretch and window. Wrong: another clip, or `MIN_SHIFT` frames and more apart.
    InfoNCE finds the right among the wrong; the sigmoid loss teaches `scale` and `bias` what a cosine is worth, against
    shifted sounds and other clips' in equal parts.
    """
    logits = network.scale * (mouth.flatten(0, 1) @ sound.flatten(0, 1).T) + network.bias
    windows = mouth.shape[1]
    who = clips.repeat_interleave(windows)
    when = (begins[:, None] + torch.arange(windows, device=begins.device)).flatten()
    own = who[:, None] == who
    near = own & ((when[:, None] - when).abs() < MIN_SHIFT)
    right = torch.arange(len(logits), device=logits.device)
    choice = logits.masked_fill(near & (right[:, None] != right), -torch.inf)
    contrast = (F.cross_entropy(choice, right) + F.cross_entropy(choice.T, right)) / 2
    wrong = [F.softplus(logits[pairs]).mean() for pairs in (own & ~near, ~own) if pairs.any()]
    return contrast + F.softplus(-logits.diagonal()).mean() + torch.stack(wrong).mean()


def vary_clips(pieces: list[Piece], autoencoder: ModelMixin, rng: np.random.Generator) -> list[Piece]:
    """The same pieces with latents of varied pictures (`View`): `sync_losses` adds some to a client's own.

    Frames and sound are shared with the originals, so a copy costs its latents. About 15 ms a clip of 75 frames.
    """
    copies = []
    for piece in pieces:
        parts = View.drawn(rng).of_pictures(piece.frames).split(32)
        device = autoencoder.device
        latents = torch.cat([encode_pixels(autoencoder, part.to(device)).cpu() for part in parts]).numpy()
        latents = latents.astype(np.float16)
        copies.append(replace(piece, latents=latents))
    return copies


@dataclass(frozen=True)
class SyncAccuracy:
    """What a sync network gets right on real clips, each with its first frame as reference; all shares in [0, 1].

    within_1, within_2: clips whose offset is found at most so many frames from 0; by chance 3 and 5 of 11.
    pairwise: windows that fit their own sound better than the same clip's sound `SPAN` frames and more away, over all
    such pairs; by chance half. Silent windows are among them, so not even a perfect network reaches 1.
    """

    within_1: float
    within_2: float
    pairwise: float


@torch.no_grad()
def sync_accuracy(network: SyncNetwork, pieces: list[Piece]) -> SyncAccuracy:
    """Measures a network in evaluation mode on pieces that it was not trained on.

    A piece too short for `find_offset` counts as not found. Raises `ValueError` for no pieces or one of fewer than
    `SPAN` frames.
    """
    if not pieces:
        raise ValueError("0 clips to measure sync accuracy on; give at least one")
    errors, wins = [], []
    for piece in pieces:
        latents, speech = (torch.from_numpy(part.astype(np.float32)) for part in (piece.latents, piece.speech))
        offset, _ = find_offset(network, latents, speech, latents[0])
        errors.append(np.inf if offset is None else abs(offset))
        mouth, sound = network.embed_mouth(latents[None], latents[:1])[0], network.embed_speech(speech[None])[0]
        cosines = (mouth @ sound.T).numpy()
        place = np.arange(len(cosines))
        apart = np.abs(place[:, None] - place) >= SPAN
        wins.append((cosines.diagonal()[:, None] > cosines)[apart])
    within_1, within_2 = (float(np.mean(np.array(errors) <= near)) for near in (1, 2))
    return SyncAccuracy(within_1, within_2, float(np.concatenate(wins).mean()))


def _vary_latents(
    network: SyncNetwork, units: np.ndarray, latents: np.ndarray, reference: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Latents [T, C, h, w] with lips that open more or less and are less exact, as generated ones are."""
    rows, columns = network.mouth
    varied = reference + (latents - reference) * np.float32(np.exp(rng.normal(0, 0.2)))
    mouth = varied[..., rows, columns]
    spread = units[:, None, None] * np.float32(rng.uniform(0, 0.3))
    varied[..., rows, columns] = mouth + spread * rng.standard_normal(mouth.shape, np.float32)
    return varied
