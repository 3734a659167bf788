"""What a window in training is told of lips: of most their true shapes, of many references theirs, or a part, and the
reference bent from its own lips to the window's.

A network that is always told learns to need it, and one that is never told cannot use it. A photo shows how far its
lips are apart, somebody's own video also where her mouth habitually sits.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fedtalk_ray.model.bending import Bends
from fedtalk_ray.model.motion_units import MotionUnits
from fedtalk_ray.model.told import filled
from fedtalk_ray.shards.windows import WindowBatch

REFERENCE_UNKNOWN, APERTURE_ALONE = 0.25, 0.25
"""Shares of windows that are told nothing of the reference's lips, and whose is not bent, and their aperture alone."""


def tell(base: Any, windows: WindowBatch, share: float, rng: np.random.Generator) -> Bends | None:
    """Gives windows their lip shapes (`told_shapes`) in place of motion, and their bent references.

    Returns what these were bent by, [B, T] of them; None where nothing is.
    """
    if not windows.lips.shape[-1]:
        return None
    windows.lips, windows.reference_lips = told_shapes(base, windows.lips, windows.reference_lips, share, rng)
    return _bend(base, windows)


def tell_held_out(base: Any, windows: WindowBatch) -> WindowBatch:
    """Held-out windows as a network is judged on them: their lips are heard, and the reference's own are told, all that
    its clip says of them. (A photo says less.)"""
    if not windows.reference_lips.shape[-1]:
        return windows
    own = base.lip_shape(windows.reference_lips.to(base.device)).cpu()
    told = replace(windows, lips=torch.full((*windows.lips.shape[:2], own.shape[-1]), torch.nan), reference_lips=own)
    _bend(base, told)
    return told


@torch.no_grad()
def _bend(base: Any, windows: WindowBatch) -> Bends | None:
    bends = bends_of(base, windows)
    if bends is not None:
        windows.bent = base.latent_bend(windows.reference.to(base.device), bends).cpu()
    return bends


@torch.no_grad()
def bends_of(base: Any, windows: WindowBatch) -> Bends | None:
    """What bends the references of windows that are told lip shapes, [B, T] of them; None where nothing is bent."""
    if not base.takes_bent():
        return None
    shapes = torch.where(windows.lips.isnan(), base.heard_shapes(windows.speech).cpu(), windows.lips).to(base.device)
    own = filled(base, windows.reference_lips.to(base.device))
    points = windows.reference_points.double().cpu().numpy()
    faces = list(zip(windows.reference, points, own, shapes, strict=True))
    laid = [base.laid(*face) for face in faces]
    flows = torch.stack([base.flows(place, each - of) for _, place, of, each in faces])
    return Bends(flows, None if laid[0] is None else torch.stack(laid))


def lips_wanted(base: Any, share: float) -> bool:
    """Whether windows need lips: to tell so large a share theirs, or to bend references."""
    return bool(base.knows_lips() and (share > 0 or base.takes_bent()))


def told_shapes(
    base: MotionUnits, lips: torch.Tensor, reference_lips: torch.Tensor, share: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lip shapes [B, T, L] and [B, L] on the CPU, of motion [B, T, LIP_MOTION] and [B, LIP_MOTION]; NaN is not told.

    share: of windows that are told their own lips (`local.true_lips`).
    """
    shapes, seen = (base.lip_shape(each.to(base.device)).cpu() for each in (lips, reference_lips))
    shapes[torch.from_numpy(rng.random(len(shapes)) >= share)] = float("nan")
    hidden = torch.from_numpy(rng.random(len(seen)))
    seen[hidden < REFERENCE_UNKNOWN] = float("nan")
    seen[hidden < REFERENCE_UNKNOWN + APERTURE_ALONE, 1:] = float("nan")
    return shapes, seen
