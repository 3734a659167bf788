"""What shows between lips that a picture has closed: its colours, place by place, as a linear map of the lip shape.

A bent picture (`bending`) pulls closed lips apart and shows nothing behind. Teeth and dark are laid there: the mean of
what mouths of that shape show, in units of the colour of what is around this mouth. Where lips were apart already the
picture has an inside of its own, which stays while they are about as far apart: teeth that are pulled out or pressed
together look like none. Whoever has a mouth of her own is shown with that instead, wherever her lips are apart.
"""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedtalk_ray.media.face_template import REGIONS
from fedtalk_ray.media.flat_mouth import LOWER, UPPER, heights
from fedtalk_ray.media.lips import MOUTH_POINTS, aperture_of

ALONG, ACROSS = 16, 8
"""Places at which an inside is known: from corner to corner of the inner lips, and from the upper lip to the lower."""

LEAST_LIGHT, MOST_LIGHT = 0.05, 2.0
"""The colour around a mouth counts as this at least, black to white being 0 to 1; an inside is that colour times
`MOST_LIGHT` at most. Means of GRID's speakers are 0.5 to 1.1 times it."""

OWN_FADES = 3.0
"""How fast a picture's own inside gives way as lips get nearer or further than they are in it. Of eight GRID speakers,
photos bent to what is heard, ST-LPIPS / mouths in dB: 0.0307 / 29.63 at 1, 0.0303 / 29.66 at 2, 0.0302 / 29.65 at 3,
0.0302 / 29.64 at 4; 0.0301 / 29.61 where nothing of it is ever shown, and 0.0310 / 29.59 where it gave way at 1 and to
lips further apart alone. Copying the photo: 0.0300."""

SHADED = 0.85
"""What many people's mouths show on average is laid this much darker: a mean holds some of the lips' own edge,
which points miss by a pixel, and no shadow. Of the same eight with the denoiser's part at 0.9 / 0.85 / 0.8 / 0.75,
ST-LPIPS 0.0295 0.0290 0.0288 0.0289, mouths 29.67 29.62 29.53 29.41 dB, lips 0.86 0.85 0.85 0.85, how far they open
0.49 0.51 0.54 0.56 of the truth's, sharpness 0.89 0.95 1.03 1.13. At 1 / 0.9 / 0.8 the Fréchet distance of mouths that
were bent alone was 20.7 20.6 21.1."""

_LEFT, _TOP, _RIGHT, _ = REGIONS["lower face"]
_SIDE = _RIGHT - _LEFT


class Mouth(Protocol):
    """Somebody's own (`own_mouth.OwnMouth`)."""

    def laid(self, soft: torch.Tensor, points: np.ndarray, moved: np.ndarray, shapes: torch.Tensor) -> torch.Tensor:
        """What is laid over a lower face [3, w, w] whose points [68, 2] have moved [T, 68, 2], finite and in fractions
        of the crop, to lip shapes [T, L]: [T, 4, w, w]."""


class OpenMouth(nn.Module):
    """Colours of insides for lip shapes of so many numbers; until they are known (`training.phases.mouths`) nothing is
    laid anywhere.

    own: the mouth of her whose adapter acts, in place of that; it is neither trained nor saved with it.
    """

    colours: torch.Tensor

    def __init__(self, lip_numbers: int) -> None:
        super().__init__()
        self.own: Mouth | None = None
        self.register_buffer("colours", torch.zeros(1 + lip_numbers, 3, ACROSS, ALONG))

    def known(self) -> bool:
        return self.own is not None or bool(self.colours.any())

    def shown(self, shapes: torch.Tensor) -> torch.Tensor:
        """Insides of mouths of lip shapes [T, L], in units of the colour around them: [T, 3, ACROSS, ALONG]."""
        regressors = torch.cat([shapes.new_ones(len(shapes), 1), shapes], dim=1)
        return torch.einsum("tr,rcvu->tcvu", regressors, self.colours).clamp(0, MOST_LIGHT)

    def laid(self, soft: torch.Tensor, points: np.ndarray, moves: np.ndarray, shapes: torch.Tensor) -> torch.Tensor:
        """What is laid over a lower face while its lips move: colours and how much of them counts, [T, 4, w, w].

        soft: the picture [3, w, w], in [-1, 1]. points: its face's [68, 2] in fractions of the crop. moves: how far the
        mouth's go [T, 20, 2]; shapes: the lip shapes that they arrive at [T, L]. Nothing is laid where either is not
        known (NaN).
        """
        moved = np.repeat(points[None].astype(np.float64), len(moves), axis=0)
        moved[:, MOUTH_POINTS] += moves
        known = np.isfinite(moved).all((1, 2))
        laid = soft.new_zeros(len(moved), 4, *soft.shape[1:])
        if not known.any():
            return laid
        places = torch.from_numpy(np.flatnonzero(known))
        given = soft, points, moved[known], shapes.nan_to_num()[places]
        laid[places] = self._everybodys(*given) if self.own is None else self.own.laid(*given)
        return laid

    def _everybodys(
        self, soft: torch.Tensor, points: np.ndarray, moved: np.ndarray, shapes: torch.Tensor
    ) -> torch.Tensor:
        """As `Mouth.laid`: the mean inside, where the picture has none of its own."""
        inside = colour_around(soft, points)[:, None, None] * (SHADED * self.shown(shapes)).to(soft)
        own, opened = aperture_of(points[None].astype(np.float64)), aperture_of(moved)
        alike = np.minimum(own, opened) / np.maximum(np.maximum(own, opened), 1e-6)
        new = np.clip(OWN_FADES * (1 - alike), 0, 1)
        return _lay(moved, 2 * inside.clamp(0, 1) - 1, soft.shape[-1], new)


def lay_over(pictures: torch.Tensor, laid: torch.Tensor) -> torch.Tensor:
    """Pictures [T, 3, w, w] with what `OpenMouth.laid` says of each [T, 4, v, v] over them."""
    if laid.shape[-1] != pictures.shape[-1]:
        laid = F.interpolate(laid, pictures.shape[-2:], mode="bilinear", align_corners=False)
    return pictures + laid[:, 3:] * (laid[:, :3] - pictures)


def inside_of(frames: np.ndarray, points: np.ndarray) -> torch.Tensor:
    """What frames uint8 [T, S, S, 3] show between the inner lips, whose points [T, 68, 2] are in fractions of the crop:
    [T, 3, ACROSS, ALONG], black to white being 0 to 1."""
    along, across = ((np.arange(count) + 0.5) / count for count in (ALONG, ACROSS))
    left, right = points[:, UPPER[:1], 0], points[:, UPPER[-1:], 0]
    x = left + (right - left) * along
    upper, lower = (heights(points, lip, x)[:, None] for lip in (UPPER, LOWER))
    y = upper + (lower - upper) * across[:, None]
    places = torch.from_numpy(np.stack(np.broadcast_arrays(x[:, None], y), axis=-1)).float()
    pictures = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 255
    return F.grid_sample(pictures, 2 * places - 1, padding_mode="border", align_corners=False)


def colour_around(soft: torch.Tensor, points: np.ndarray) -> torch.Tensor:
    """The mean colour of the box around the outer lips in a lower face [3, w, w] of [-1, 1]: [3], 0 to 1."""
    side = soft.shape[-1]
    low, high = points[MOUTH_POINTS].min(0), points[MOUTH_POINTS].max(0)
    edges = np.stack([low, high]) - (_LEFT, _TOP)
    if not np.isfinite(edges).all():
        return soft.new_full((3,), 0.5)
    (left, top), (right, bottom) = np.clip(np.round(edges / _SIDE * side), 0, side - 1).astype(int)
    box = soft[:, top : max(bottom, top + 1), left : max(right, left + 1)]
    return ((box.mean((1, 2)) + 1) / 2).clamp(LEAST_LIGHT, 1)


def _lay(points: np.ndarray, insides: torch.Tensor, side: int, new: np.ndarray) -> torch.Tensor:
    """Insides [T, 3, across, along] between the inner lips of faces [T, 68, 2], in lower faces of so many pixels a
    side, their borders a pixel soft, of which so much counts [T]: [T, 4, side, side]."""
    laid, pixel = insides.new_zeros(len(points), 4, side, side), _SIDE / side
    # Only in the box around all mouths there is anything to work out.
    lips = (points[:, UPPER + LOWER] - (_LEFT, _TOP)) / pixel
    first, top = np.clip(lips.min((0, 1)) - 2, 0, side).astype(int)
    last, bottom = np.clip(lips.max((0, 1)) + 3, 0, side).astype(int)
    if first == last or top == bottom:
        return laid
    ticks = (np.arange(side) + 0.5) * pixel
    x, y = (_LEFT + ticks)[first:last], (_TOP + ticks)[top:bottom, None]
    columns = np.broadcast_to(x, (len(points), len(x)))
    upper, lower = (heights(points, lip, columns)[:, None] for lip in (UPPER, LOWER))
    left, right = points[:, UPPER[:1], :1], points[:, UPPER[-1:], :1]
    gap, within = lower - upper, (x > left) & (x < right)
    shares = ((y - upper) / pixel + 0.5, (lower - y) / pixel + 0.5, gap / pixel, within, new[:, None, None])
    counts = np.prod(np.broadcast_arrays(*(np.clip(share, 0, 1) for share in shares)), axis=0)
    along, across = (x - left) / np.maximum(right - left, 1e-6), (y - upper) / np.maximum(gap, 1e-6)
    places = np.stack(np.broadcast_arrays(along, across), axis=-1).clip(0, 1)
    box = (..., slice(top, bottom), slice(first, last))
    laid[:, :3][box] = F.grid_sample(
        insides, torch.from_numpy(2 * places - 1).to(insides), padding_mode="border", align_corners=False
    )
    laid[:, 3][box] = torch.from_numpy(counts).to(insides)
    return laid
