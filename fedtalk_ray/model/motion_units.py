"""What a denoiser's numbers mean: the units of latents and residuals, lip shapes, and what is shown of a prediction.

Statistics of clips fix them: `training.phases.units` before anything is taught, `training.phases.calibration` at the
end. They are buffers, so they are saved with the weights and never trained.
"""

from collections.abc import Callable

import torch
from torch import nn

from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE, mouth_mask
from fedtalk_ray.media.lips import INNER_LIP_PAIRS, LIP_MOTION, MOUTH_POINTS
from fedtalk_ray.model.backbone_base import Backbone
from fedtalk_ray.model.open_mouth import OpenMouth


class MotionUnits(Backbone):
    """The base of a backbone that works on residuals in units of their deviation; it calls `add_units` when it is
    made."""

    register_buffer: Callable[..., None]

    def add_units(self, channels: int, side: int, lip_numbers: int, region: str = "face") -> None:
        """Buffers for so many latent channels of side x side cells of a region and numbers of a lip shape."""
        self.region = region
        self.open_mouth: OpenMouth | None = None
        self.reference_mean: torch.Tensor
        self.reference_std: torch.Tensor
        self.residual_std: torch.Tensor
        self.register_buffer("reference_mean", torch.zeros(channels))
        self.register_buffer("reference_std", torch.ones(channels))
        self.register_buffer("residual_std", torch.ones(channels))
        self.lip_axes: torch.Tensor
        self.lip_mean: torch.Tensor
        self.lip_std: torch.Tensor
        self.register_buffer("lip_axes", torch.zeros(max(0, lip_numbers - 1), LIP_MOTION - 1))
        self.register_buffer("lip_mean", torch.zeros(lip_numbers))
        self.register_buffer("lip_std", torch.ones(lip_numbers))
        self.certainty: torch.Tensor
        self.liveliness: torch.Tensor
        self.detail: torch.Tensor
        self.register_buffer("certainty", torch.ones(side, side))
        self.register_buffer("liveliness", 1 - mouth_blend(side, region))
        self.register_buffer("detail", torch.zeros(side, side))

    def knows_lips(self) -> bool:
        """Whether lip axes were fixed (`training.phases.units`): pipelines of older versions have none."""
        return bool(self.lip_axes.any())

    def lip_shape(self, motion: torch.Tensor) -> torch.Tensor:
        """Lip shapes [..., lip_numbers], in standard deviations, from `media.lips.lip_motion` [..., LIP_MOTION].

        The first number is the aperture. The others are the mouth's largest variations, `lip_axes`.
        """
        numbers = torch.cat([motion[..., :1], motion[..., 1:] @ self.lip_axes.T], dim=-1)
        return (numbers - self.lip_mean) / self.lip_std

    def mouth_moves(self, change: torch.Tensor) -> torch.Tensor:
        """How far the mouth's points go, [..., 20, 2] in fractions of the crop's side, when a lip shape changes by
        [..., lip_numbers] deviations."""
        return ((change * self.lip_std)[..., 1:] @ self.lip_axes).unflatten(-1, (-1, 2))

    def with_aperture(self) -> torch.Tensor:
        """By how much a lip shape changes, on average, when lips are a deviation further apart: [lip_numbers]."""
        gap = torch.zeros(LIP_MOTION - 1)
        for upper, lower in INNER_LIP_PAIRS:
            for point, sign in ((upper, -1), (lower, 1)):
                gap[2 * (point - MOUTH_POINTS.start) + 1] += sign / len(INNER_LIP_PAIRS) / (RIGHT_EYE[0] - LEFT_EYE[0])
        # Along an axis shapes vary by `lip_std`, and lips part by so much of that.
        parted = self.lip_axes @ gap.to(self.lip_axes)
        others = self.lip_std[1:] * parted / self.lip_std[0]
        return torch.cat([others.new_ones(1), others.clamp(-1, 1)])

    def to_residual(self, latents: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Latents [B, T, C, h, w] as residuals on the reference [B, C, h, w], in standard deviations."""
        return (latents - reference[:, None]) / self.residual_std[:, None, None]

    def from_residual(self, residual: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_residual`."""
        return residual * self.residual_std[:, None, None] + reference[:, None]

    def shown(self, mean: torch.Tensor, sample: torch.Tensor, motion: torch.Tensor | float = 0.0) -> torch.Tensor:
        """What is shown of a face, residuals [T, C, h, w], given the mean of all that may be seen and one sample of it.

        motion: residuals of the reference bent to each frame's lips; what the network adds to it is shown in part. Cell
        by cell `certainty` of the mean, and `liveliness` of what the sample adds; the phase `calibration` fits both. As
        built, the mouth, where the sound decides, is the mean, and the rest, where eyes and head move as they like, is
        the sample.
        """
        return motion + self.certainty * (mean - motion) + self.liveliness * (sample - mean)


def mouth_blend(side: int, region: str = "face") -> torch.Tensor:
    """[side, side], 1 in the mouth region and 0 elsewhere, over a soft edge of a cell on either side."""
    return nn.functional.avg_pool2d(torch.from_numpy(mouth_mask(side, region))[None], 3, stride=1, padding=1)[0]
