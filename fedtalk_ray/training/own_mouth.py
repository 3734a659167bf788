"""One person's own mouth, out of her clips."""

from collections.abc import Iterable

import numpy as np
import torch

from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE
from fedtalk_ray.media.flat_mouth import LIP_CORNERS, flat_mouths
from fedtalk_ray.media.lips import MOUTH_POINTS, aperture_of, lip_motion
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.own_mouth import MOST_FRAMES, MOST_SHAPE, OwnMouth
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.phases.mouths import can_open
from fedtalk_ray.training.phases.statistics import check_landmarks

BLOCK = 100
"""Frames that are looked at together."""

NARROWEST = 0.4
"""From corner to corner, of what lies between the eyes: a narrower mouth is seen from the side."""


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
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    every, passed, kept = 1, 0, 0
    for piece in pieces:
        check_landmarks(piece, len(piece.frames))
        shapes = denoiser.lip_shape(torch.from_numpy(lip_motion(piece.landmarks)).to(denoiser.device)).cpu()
        known = (shapes.abs() <= MOST_SHAPE).all(1).numpy()
        seen = np.flatnonzero(known & shows_lips_apart(piece.landmarks))
        chosen = seen[-passed % every :: every]
        passed, kept = passed + len(seen), kept + len(chosen)
        # A long clip's frames would be gigabytes as numbers.
        for block in (chosen[begin : begin + BLOCK] for begin in range(0, len(chosen), BLOCK)):
            pictures = torch.from_numpy(piece.frames[block]).permute(0, 3, 1, 2).float()
            flat = flat_mouths(pictures, piece.landmarks[block]).clamp(0, 255).round().byte()
            found.append((shapes[block], flat))
        # And an hour of them half a gigabyte, laid out flat.
        while kept > 4 * MOST_FRAMES:
            shapes, mouths = _joined(found)
            found = [(shapes[::2].clone(), mouths[::2].clone())]
            every, kept = 2 * every, len(found[0][0])
    return OwnMouth(*_joined(found)) if kept else None


def _joined(found: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    shapes, mouths = zip(*found, strict=True)
    return torch.cat(shapes), torch.cat(mouths)


def shows_lips_apart(points: np.ndarray) -> np.ndarray:
    """In which frames a mouth lies whole in the crop, is not seen from the side, and is open: bool [T].

    points: faces' [T, 68, 2], in fractions of the crop.
    """
    mouth = points[:, MOUTH_POINTS]
    left, right = (points[:, corner, 0] for corner in LIP_CORNERS)
    wide = right - left > NARROWEST * (RIGHT_EYE[0] - LEFT_EYE[0])
    inside = ((mouth >= 0) & (mouth <= 1)).all((1, 2))
    return np.asarray(np.isfinite(points).all((1, 2)) & inside & wide & (aperture_of(points) > 0))
