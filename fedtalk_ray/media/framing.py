"""How a face is framed: what part of a picture a crop shows, and how much of the crop is put back.

`aligned` is `face_template`'s: turned and scaled so that the eyes always lie in the same place. `musetalk` is MuseTalk
1.5's box (its `get_landmark_and_bbox`): the face from cheek to cheek and from the chin to as far above the bridge of
the nose, upright as it is in the picture, each side stretched to the crop's. What `fedtalk evaluate` measures is
aligned, whatever the framing (`to_aligned`), so that models of both stand in one table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedtalk_ray.media.compositing import mask_of, superellipse
from fedtalk_ray.media.faces import oversampling, similarity_transforms, smooth_landmarks, warp

BELOW_CHIN = 10.0
"""Pixels of the picture below the lowest landmark that MuseTalk 1.5's crop shows."""

_BRIDGE = 29
_CENTRE, _REACH = (0.5, 0.76), (0.42, 0.22)  # of the superellipse that is put back: cheeks and jaw of the lower half
_SOFT = 0.05  # width of its border, as MuseTalk blurs by a twentieth of the crop


@dataclass(frozen=True)
class Framing:
    """transforms: from landmarks [T, 68, 2] in a picture's pixels to maps from crop fractions to these pixels,
    float64 [T, 2, 3]. mask: of so many pixels a side, how much of a crop is put back, float32 [side, side]."""

    name: str
    transforms: Callable[[np.ndarray], np.ndarray]
    mask: Callable[[int], np.ndarray]


def musetalk_boxes(points: np.ndarray) -> np.ndarray:
    """MuseTalk 1.5's crop of landmarks [T, 68, 2]: (left, top, right, bottom) in pixels, float64 [T, 4].

    Published code cuts the box off at the picture's edges and so stretches what is left the more; here it reaches
    beyond them, where the edge goes on.
    """
    x, y = points[..., 0], points[..., 1]
    bridge, chin = y[:, _BRIDGE], y.max(1)
    return np.stack([x.min(1), 2 * bridge - chin, x.max(1), chin + BELOW_CHIN], axis=1)


def _musetalk_transforms(points: np.ndarray) -> np.ndarray:
    left, top, right, bottom = musetalk_boxes(np.asarray(points, np.float64)).T
    nothing = np.zeros_like(left)
    return np.stack([right - left, nothing, left, nothing, bottom - top, top], axis=1).reshape(-1, 2, 3)


def _musetalk_mask(side: int) -> np.ndarray:
    mask = superellipse(side, _CENTRE, _REACH, 3, _SOFT)
    # Nothing of the upper half, which the network was shown.
    mask[: -(-side // 2)] = 0
    return mask


ALIGNED = Framing("aligned", similarity_transforms, mask_of)
MUSETALK = Framing("musetalk", _musetalk_transforms, _musetalk_mask)
FRAMINGS = {each.name: each for each in (ALIGNED, MUSETALK)}


def in_crop(points: np.ndarray, transforms: np.ndarray) -> np.ndarray:
    """Landmarks [T, 68, 2] in a picture's pixels as fractions of crops that lie there by [T, 2, 3], float32."""
    moved = np.asarray(points, np.float64) - transforms[:, None, :, 2]
    return np.einsum("tij,tnj->tni", np.linalg.inv(transforms[:, :, :2]), moved).astype(np.float32)


def to_aligned(landmarks: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Maps from the template's fractions to those of other crops, float64 [T, 2, 3].

    landmarks: in fractions of these crops, [T, 68, 2]. places: where these lie in their pictures, [T, 2, 3].
    """
    places = np.asarray(places, np.float64)
    linear, shift = places[:, :, :2], places[:, :, 2]
    seen = np.einsum("tij,tnj->tni", linear, np.asarray(landmarks, np.float64)) + shift[:, None]
    aligned = similarity_transforms(smooth_landmarks(seen))
    back = np.linalg.inv(linear)
    turned = back @ aligned[:, :, :2]
    moved = np.einsum("tij,tj->ti", back, aligned[:, :, 2] - shift)
    return np.concatenate([turned, moved[..., None]], axis=2)


def aligned_crops(frames: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Crops uint8 [T, S, S, 3] of any framing as aligned ones of as many pixels; maps: of `to_aligned`.

    What of the template lies outside a crop shows the crop's edge.
    """
    side = frames.shape[1]
    pixels = maps * side
    oversample = oversampling(pixels, side)
    return np.stack([warp(frame, each, side, oversample) for frame, each in zip(frames, pixels, strict=False)])
