"""One person's own mouth, out of her clips."""

from collections.abc import Iterable

import numpy as np
import torch

from fedtalk_ray.media.flat_mouth import SIDE, flat_mouths
from fedtalk_ray.media.lips import MOUTH_POINTS, aperture_of, lip_motion
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.own_mouth import MOST_FRAMES, OwnMouth
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.phases.mouths import can_open
from fedtalk_ray.training.phases.statistics import check_landmarks

BLOCK = 100
"""Frames that are looked at together."""

NARROWEST = 0.25
"""From corner to corner, of what lies between the outer corners of the eyes: a narrower mouth is seen from the side."""


@torch.no_grad()
def own_mouth(pieces: Iterable[Piece], denoiser: object) -> OwnMouth | None:
    """What the mouth of somebody with these clips looks like, from their frames and landmarks.

    None where nothing is known of open mouths: by a network that bends nothing, one that was not taught what they show,
    or by clips in which no lips part. Raises `ShardError` for pieces without landmarks.
    """
    if not can_open(denoiser):
        return None
    assert isinstance(denoiser, TalkingHeadDenoiser) and denoiser.open_mouth is not None
    if not denoiser.open_mouth.known():
        return None
    shapes, mouths = torch.zeros(0, len(denoiser.lip_std)), torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8)
    every, passed = 1, 0
    for piece in pieces:
        check_landmarks(piece, len(piece.frames))
        told = denoiser.lip_shape(torch.from_numpy(lip_motion(piece.landmarks)).to(denoiser.device)).cpu()
        seen = np.flatnonzero(told.isfinite().all(1).numpy() & shows_lips_apart(piece.landmarks))
        chosen = seen[-passed % every :: every]
        passed += len(seen)
        # A long clip's frames would be gigabytes as numbers.
        for block in (chosen[begin : begin + BLOCK] for begin in range(0, len(chosen), BLOCK)):
            pictures = torch.from_numpy(piece.frames[block]).permute(0, 3, 1, 2).float()
            flat = flat_mouths(pictures, piece.landmarks[block]).clamp(0, 255).round().byte()
            shapes, mouths = torch.cat([shapes, told[block]]), torch.cat([mouths, flat])
        # And an hour of them half a gigabyte, laid out flat.
        while len(shapes) > 4 * MOST_FRAMES:
            shapes, mouths, every = shapes[::2].clone(), mouths[::2].clone(), 2 * every
    return OwnMouth(shapes, mouths) if len(shapes) else None


def shows_lips_apart(points: np.ndarray) -> np.ndarray:
    """In which frames a mouth lies whole in the crop, is not seen from the side, and is open: bool [T].

    points: faces' [T, 68, 2], in fractions of the crop."""
    mouth = points[:, MOUTH_POINTS]
    wide = points[:, 54, 0] - points[:, 48, 0] > NARROWEST * (points[:, 45, 0] - points[:, 36, 0])
    inside = ((mouth >= 0) & (mouth <= 1)).all((1, 2))
    return np.asarray(np.isfinite(points).all((1, 2)) & inside & wide & (aperture_of(points) > 0))
