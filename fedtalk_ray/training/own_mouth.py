"""One person's own mouth, out of her clips."""

from collections.abc import Iterable

import numpy as np
import torch

from fedtalk_ray.media.flat_mouth import flat_mouths
from fedtalk_ray.media.lips import aperture_of, lip_motion
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.own_mouth import MOST_FRAMES, OwnMouth
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.phases.mouths import can_open
from fedtalk_ray.training.phases.statistics import check_landmarks


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
    every = 1
    for piece in pieces:
        check_landmarks(piece, len(piece.frames))
        shapes = denoiser.lip_shape(torch.from_numpy(lip_motion(piece.landmarks)).to(denoiser.device)).cpu()
        known = shapes.isfinite().all(1).numpy() & np.isfinite(piece.landmarks).all((1, 2))
        seen = np.flatnonzero(known & (aperture_of(piece.landmarks) > 0))[::every]
        pictures = torch.from_numpy(piece.frames[seen]).permute(0, 3, 1, 2).float()
        if len(seen):
            found.append((shapes[seen], flat_mouths(pictures, piece.landmarks[seen]).clamp(0, 255).round().byte()))
        # An hour of clips would be half a gigabyte.
        while sum(len(shapes) for shapes, _ in found) > 4 * MOST_FRAMES:
            found = [(one[::2].clone(), two[::2].clone()) for one, two in found]
            every *= 2
    if not found:
        return None
    return OwnMouth(*(torch.cat(parts) for parts in zip(*found, strict=True)))
