"""What a window in training is told of lips: of most their true shapes, and of many references theirs, or a part.

A network that is always told learns to need it, and one that is never told cannot use it. A photo shows how far its
lips are apart, somebody's own video also where her mouth habitually sits.
"""

import numpy as np
import torch

from fedtalk_ray.model.motion_units import MotionUnits

REFERENCE_UNKNOWN, APERTURE_ALONE = 0.25, 0.25
"""Shares of windows that are told nothing of the reference's lips, and their aperture alone."""


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
