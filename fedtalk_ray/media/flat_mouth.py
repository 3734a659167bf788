"""A mouth laid out flat: lips and what lies between them at the same places, whatever shape they have.

Columns go from corner to corner of the lips, rows from above the upper lip over its outer and inner edge and those of
the lower lip to below it, with a border of skin all around. So mouths of many shapes can be averaged without a blur,
and shown in a shape that none of them had.
"""

import numpy as np
import torch
import torch.nn.functional as F

from fedtalk_ray.media.lips import MOUTH_POINTS

SIDE = 48
"""Places of a flat mouth along and across: mouths are 35 to 50 pixels wide in crops of 144."""

SOFT = 3
"""Over so many rows, around each edge, what is between the lips gives way to them: points miss edges by a pixel."""

_COLUMNS = 4, 40, 4
"""Of the border, the mouth and the border again."""
BORDER = _COLUMNS[0] / _COLUMNS[1]
"""How wide the border of skin is on all sides, in widths of the mouth."""
_ROWS = 6, 9, 18, 9, 6
"""Of the border, the upper lip, what lies between the lips, the lower lip, and the border."""
LIP_CORNERS = 48, 54
"""The outer lips' points at the left and the right, by dlib's numbers."""
UPPER, LOWER = (60, 61, 62, 63, 64), (60, 67, 66, 65, 64)
"""The inner lips' points, from corner to corner."""
_EDGES = (48, 49, 50, 51, 52, 53, 54), UPPER, LOWER, (48, 59, 58, 57, 56, 55, 54)
"""The lips' edges from top to bottom, each from corner to corner."""


def _shown_share() -> np.ndarray:
    """How much of each place is shown, float32 [SIDE, SIDE]: 1 between the lips, half at their edges, 0 on them."""
    rows, knots = np.arange(SIDE) + 0.5, np.cumsum(_ROWS)
    between = np.clip(np.minimum(rows - knots[1], knots[2] - rows) / SOFT + 0.5, 0, 1)
    return np.repeat(between[:, None], SIDE, axis=1).astype(np.float32)


def skin_around(mouths: torch.Tensor) -> torch.Tensor:
    """The mean colour of the skin around flat mouths [..., 3, SIDE, SIDE]: [..., 3, 1, 1]."""
    skin = torch.ones(SIDE, SIDE, device=mouths.device)
    skin[_ROWS[0] : -_ROWS[-1], _COLUMNS[0] : -_COLUMNS[-1]] = 0
    return (mouths * skin).sum((-2, -1), keepdim=True) / skin.sum()


def flat_mouths(pictures: torch.Tensor, points: np.ndarray) -> torch.Tensor:
    """The mouths of pictures float [T, 3, h, w], flat: [T, 3, SIDE, SIDE].

    points: their faces' [T, 68, 2], finite, in fractions of the picture.
    """
    mouth = points.astype(np.float64)
    left, width = _extent(mouth)
    x = left + width * (np.arange(SIDE) + 0.5 - _COLUMNS[0]) / _COLUMNS[1]
    knots = np.cumsum([0, *_ROWS])
    at = np.arange(SIDE) + 0.5
    band = np.searchsorted(knots, at) - 1
    within = ((at - knots[band]) / np.take(_ROWS, band))[:, None]
    edges = _edges(mouth, x, width)
    y = edges[:, band] + within * (edges[:, band + 1] - edges[:, band])
    places = np.stack(np.broadcast_arrays(x[:, None], y), axis=-1)
    return F.grid_sample(pictures, _grid(places, pictures), mode="bicubic", padding_mode="border", align_corners=False)


def lay_flat_mouths(mouths: torch.Tensor, points: np.ndarray, side: int) -> torch.Tensor:
    """Layers [T, 4, side, side] over pictures of so many pixels a side: flat mouths [T, 3, SIDE, SIDE] where faces'
    points [T, 68, 2] say, finite and in fractions of the picture, and how much of them is shown there."""
    layers = mouths.new_zeros(len(mouths), 4, side, side)
    mouth = points.astype(np.float64)
    left, width = _extent(mouth)
    # Only in the box around all mouths there is anything to work out.
    border = BORDER * width[:, :, None]
    low = (mouth[:, MOUTH_POINTS] - border).min((0, 1)) * side
    high = (mouth[:, MOUTH_POINTS] + border).max((0, 1)) * side
    (first, top), (last, bottom) = (np.clip([np.floor(low), np.ceil(high)], 0, side)).astype(int)
    if first >= last or top >= bottom:
        return layers
    ticks = (np.arange(side) + 0.5) / side
    x = np.broadcast_to(ticks[first:last], (len(mouth), last - first))
    y = ticks[top:bottom, None]
    edges = _edges(mouth, x, width)[:, :, None]
    # How far down each band of rows a place lies; an edge upon an edge is passed at once.
    steps = [
        rows * np.clip((y - upper) / np.maximum(lower - upper, 1e-6), 0, 1)
        for rows, upper, lower in zip(_ROWS, edges.swapaxes(0, 1)[:-1], edges.swapaxes(0, 1)[1:], strict=True)
    ]
    down = np.sum(steps, axis=0)
    along = np.broadcast_to((_COLUMNS[0] + _COLUMNS[1] * (x - left) / width)[:, None], down.shape)
    grid = _grid(np.stack([along, down], axis=-1) / SIDE, mouths)
    share = torch.from_numpy(_shown_share()).to(mouths).expand(len(mouths), 1, SIDE, SIDE)
    box = (..., slice(top, bottom), slice(first, last))
    layers[:, :3][box] = F.grid_sample(mouths, grid, mode="bicubic", padding_mode="border", align_corners=False)
    layers[:, 3:][box] = F.grid_sample(share, grid, padding_mode="zeros", align_corners=False)
    return layers


def _extent(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where mouths begin, and how wide they are: [T, 1] each."""
    left, right = (points[:, [corner], 0] for corner in LIP_CORNERS)
    return left, np.maximum(right - left, 1e-3)


def _edges(points: np.ndarray, x: np.ndarray, width: np.ndarray) -> np.ndarray:
    """How far down the borders of rows lie at places x [T, n], none above the one before: [T, 6, n]."""
    lips = np.stack([heights(points, edge, x) for edge in _EDGES], axis=1)
    border = BORDER * width[:, None]
    return np.maximum.accumulate(np.concatenate([lips[:, :1] - border, lips, lips[:, -1:] + border], axis=1), axis=1)


def heights(points: np.ndarray, edge: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    """How far down an edge of the lips of faces [T, 68, 2] lies at places x [T, n]: [T, n]."""
    lines = zip(x, points[:, edge], strict=True)
    return np.stack([np.interp(at, np.maximum.accumulate(line[:, 0]), line[:, 1]) for at, line in lines])


def _grid(places: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(2 * places - 1).to(like)
