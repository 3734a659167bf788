"""A patch of a face put back into its picture: a soft mask around mouth and jaw, light matched at its border.

Patches lie in the template (`face_template`), so that one transform a frame says where they go. Outside the mask every
pixel of the picture stays as it is, to the bit.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

_CENTRE, _REACH = (0.5, 0.73), (0.33, 0.25)  # of the mask's ellipse: from below the eyes to the chin
_SOFT = 0.10  # width of its border
_LIGHT_SIDE = 32  # pixels a side at which light is matched


def mask_of(side: int) -> np.ndarray:
    """How much of a patch is shown, float32 [side, side]: 1 around mouth and jaw, 0 at eyes, ears and the edges."""
    return superellipse(side, _CENTRE, _REACH, 2.5, _SOFT)


def superellipse(
    side: int, centre: tuple[float, float], reach: tuple[float, float], power: float, soft: float
) -> np.ndarray:
    """float32 [side, side], 1 inside and 0 outside: rounder than a box, fuller than an ellipse in a jaw's corners.

    centre, reach, soft (the border's width): in fractions of the side.
    """
    axis = (np.arange(side) + 0.5) / side
    x, y = (axis - centre[0]) / reach[0], (axis - centre[1]) / reach[1]
    inside = 1 - (np.abs(x[None]) ** power + np.abs(y[:, None]) ** power) ** (1 / power)
    level = np.clip(inside * min(reach) / soft, 0, 1)
    return (level * level * (3 - 2 * level)).astype(np.float32)


def paste(picture: np.ndarray, patch: np.ndarray, transform: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture uint8 [H, W, 3] with the patch in it; a new array.

    patch: float32 [S, S, 3] in 0..255. transform: from template fractions to picture pixels [2, 3]. mask: float32
    [S, S]. What would lie outside the picture is left out.
    """
    height, width = picture.shape[:2]
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    made = picture.copy()
    if not len(rows):
        return made
    side = len(mask)
    corners = np.array([(x, y, 1) for x in (columns[0], columns[-1] + 1) for y in (rows[0], rows[-1] + 1)], float)
    corners[:, :2] /= side
    spread = corners @ transform.T
    left, top = np.clip(np.floor(spread.min(0)).astype(int) - 1, 0, (width, height))
    right, bottom = np.clip(np.ceil(spread.max(0)).astype(int) + 1, 0, (width, height))
    if left >= right or top >= bottom:
        return made
    x, y = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
    places = np.stack([x, y], -1) - transform[:, 2]
    grid = torch.from_numpy(places @ np.linalg.inv(transform[:, :2]).T * 2 - 1).float()[None]
    layers = torch.from_numpy(np.concatenate([patch, mask[..., None]], -1)).permute(2, 0, 1)[None].float()
    sampled = F.grid_sample(layers, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    inside = (grid[0].abs() <= 1).all(-1)
    colour, shown = sampled[:3].permute(1, 2, 0).numpy(), (sampled[3] * inside).numpy()[..., None]
    before = picture[top:bottom, left:right]
    after = before + shown * (colour - before)
    made[top:bottom, left:right] = np.where(shown > 0, np.clip(np.rint(after), 0, 255), before).astype(np.uint8)
    return made


def light_between(crop: np.ndarray, patch: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What to add to a patch so that its border has the crop's light, float32 [S, S, 3]; smooth inside.

    crop: the picture's own pixels there, patch: both [S, S, 3] in 0..255. The difference at the mask's border is spread
    inwards: a normalised convolution, in place of a Poisson equation.
    """
    side = len(mask)
    border = (mask > 0) * (1 - mask)
    weighted = np.dstack([(crop.astype(np.float32) - patch) * border[..., None], border])
    small = resized(weighted, _LIGHT_SIDE)
    spread = np.stack([gaussian_filter(small[..., k], 0.12 * _LIGHT_SIDE) for k in range(4)], -1)
    return resized(spread[..., :3] / (spread[..., 3:] + 1e-4), side)


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """float32 [S, S, C] at another side: means of areas where it shrinks, bicubic where it grows."""
    planes = torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).permute(2, 0, 1)[None]
    if side < len(pixels):
        made = F.interpolate(planes, (side, side), mode="area")
    else:
        made = F.interpolate(planes, (side, side), mode="bicubic", align_corners=False)
    return made[0].permute(1, 2, 0).numpy()
