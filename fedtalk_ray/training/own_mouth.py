"""One person's own opened mouth, out of her clips."""

from collections.abc import Iterable

import torch

from fedtalk_ray.model.own_mouth import FINER, MOST_FRAMES, OwnMouth
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.phases.mouths import can_open, insides


@torch.no_grad()
def own_mouth(pieces: Iterable[Piece], denoiser: object) -> OwnMouth | None:
    """What the mouth of somebody with these clips shows, from their frames and landmarks.

    None where nothing is known of open mouths: by a network that bends nothing, one that was not taught what they show,
    or by clips in which no lips part. Raises `ShardError` for pieces without landmarks.
    """
    if not can_open(denoiser) or not denoiser.open_mouth.known():  # type: ignore[attr-defined]
        return None
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    every = 1
    for piece in pieces:
        shapes, colours, weights = insides(piece, denoiser, FINER)  # type: ignore[arg-type]
        known = shapes.isfinite().all(1) & colours.isfinite().flatten(1).all(1)
        apart = torch.from_numpy(weights > 0) & known
        found.append(
            (shapes[apart][::every], colours[apart][::every].half(), torch.from_numpy(weights)[apart][::every])
        )
        # An hour of clips would be half a gigabyte.
        while sum(len(each) for each, *_ in found) > 4 * MOST_FRAMES:
            found = [(one[::2].clone(), two[::2].clone(), three[::2].clone()) for one, two, three in found]
            every *= 2
    if not sum(len(each) for each, *_ in found):
        return None
    return OwnMouth(*(torch.cat(parts) for parts in zip(*found, strict=True)))
