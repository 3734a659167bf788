"""A face's lower part bent to the shape of its lips: its picture, and the latents of it.

Latents of a fixed transform (`LowerFaceAutoencoder`) are turned back to the soft picture that they say, which is bent,
and transformed again. What opened lips show is laid between them (`open_mouth`). No parameter is learned here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedtalk_ray.media.face_template import REGIONS
from fedtalk_ray.media.lip_warp import centres, lip_flow, moves_of_face
from fedtalk_ray.model.open_mouth import lay_over
from fedtalk_ray.model.patch_basis import patch_basis

_LEFT, _TOP, _RIGHT, _ = REGIONS["lower face"]
_SIDE = _RIGHT - _LEFT
_CELLS = 24
"""A side, of the grid on which the spline is worked out."""
_PLACES = (_LEFT, _TOP) + centres(_CELLS) * _SIDE


@dataclass(frozen=True)
class Bends:
    """What pictures of lower faces are bent by: flows [..., 2, c, c] (`lower_flow`), and what is laid over them then
    [..., 4, w, w] (`OpenMouth.laid`), None for nothing."""

    flows: torch.Tensor
    laid: torch.Tensor | None = None

    def __getitem__(self, places: Any) -> "Bends":
        return Bends(self.flows[places], None if self.laid is None else self.laid[places])


class LatentBend(nn.Module):
    """For latents of so many coefficients of `patch` pixels of the lower face (`LowerFaceAutoencoder`)."""

    basis: torch.Tensor

    def __init__(self, patch: int, luma: int, chroma: int) -> None:
        super().__init__()
        self.patch = patch
        self.register_buffer("basis", torch.from_numpy(patch_basis(patch, luma, chroma)), persistent=False)

    def forward(self, latents: torch.Tensor, bends: Bends) -> torch.Tensor:
        """Latents [B, C, h, h], each bent T times, [B, T] of them: [B, T, C, h, h]; differentiable in the latents."""
        count = bends.flows.shape[:2]
        each = Bends(bends.flows.flatten(0, 1), None if bends.laid is None else bends.laid.flatten(0, 1))
        bent = bend(self.soft(latents).repeat_interleave(count[1], dim=0), each)
        return F.conv2d(bent, self.basis.to(bent), stride=self.patch).unflatten(0, count).to(latents.dtype)

    def soft(self, latents: torch.Tensor) -> torch.Tensor:
        """The soft pictures [B, 3, w, w] that latents [B, C, h, h] say, at least float32."""
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        return F.conv_transpose2d(latents, self.basis.to(latents), stride=self.patch)


def lower_flow(points: np.ndarray, mouth: np.ndarray) -> torch.Tensor:
    """From where each place of a lower face is taken: float32 [T, 2, c, c], differences in fractions of its side.

    points: of the whole face [68, 2], in fractions of its crop. mouth: how far the mouth's points go, [T, 20, 2]. Where
    either is not known (NaN), nothing moves.
    """
    known = np.isfinite(points).all() and np.isfinite(mouth).all((1, 2))
    flows = np.zeros((len(mouth), *_PLACES.shape))
    flows[known] = lip_flow(points, moves_of_face(mouth[known]), _PLACES) if np.any(known) else 0
    return torch.from_numpy(flows / _SIDE).float().permute(0, 3, 1, 2)


def bend(pictures: torch.Tensor, bends: Bends) -> torch.Tensor:
    """Lower faces [T or 1, 3, w, w], each by one of T: [T, 3, w, w]."""
    side, flows = pictures.shape[-1], bends.flows.to(pictures)
    fine = F.interpolate(flows, (side, side), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    places = torch.from_numpy(centres(side)).to(fine) + fine
    pictures = pictures.expand(len(flows), -1, -1, -1)
    bent = F.grid_sample(pictures, 2 * places - 1, mode="bicubic", padding_mode="border", align_corners=False)
    return bent if bends.laid is None else lay_over(bent, bends.laid.to(bent))
