"""What a photo lacks beside speech: eyes that blink and a head that sways a little. Geometry alone, no network.

A blink lays the upper lid's skin over the eye, between the landmarks of both lids. Sway turns and shifts the head by a
small smooth motion that fades out around it, so that the background stands still.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

BLINK_EVERY = (2.0, 5.5)
"""Seconds between two blinks, drawn evenly. People at rest blink about every four seconds."""
BLINK_CLOSES, BLINK_OPENS = 0.10, 0.18
"""Seconds."""
SWAY_DEGREES, SWAY_SHIFT = 0.9, 0.012
"""Largest turn, and largest shift as a fraction of the face's crop."""

_SWAY_REACH = 1.3  # of the crop, from its middle to where the picture stands still
_PERIODS = (3.7, 5.9, 8.3)  # seconds; no small common multiple, so that no rhythm is seen
_EYES = ((36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47))
_BROWS = (slice(17, 22), slice(22, 27))
_MARGIN = 0.06  # of the crop, around an eye
_LID_LIGHT = 0.9  # of the skin below the eye


@dataclass(frozen=True)
class StillLife:
    """landmarks: of the photo's face, float64 [68, 2] in pixels. transform: its place, aligned, [2, 3].

    size: the photo's (height, width). rate: frames a second.
    """

    landmarks: np.ndarray
    transform: np.ndarray
    size: tuple[int, int]
    rate: Fraction
    seed: int = 0

    def blinked(self, picture: np.ndarray, closed: float) -> np.ndarray:
        """The picture uint8 [H, W, 3] with the eyes closed by so much, 0 to 1."""
        for eye, brow in zip(_EYES, _BROWS, strict=True) if closed > 0 else ():
            picture = _close(picture, self.landmarks[list(eye)], self.landmarks[brow], self._side(), closed)
        return picture

    def swayed(self, picture: np.ndarray, number: int, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The picture as the head stands in frame `number`, and where a crop lies in it that lay at `place` [2, 3]."""
        turn, right, down = self._sway(number / float(self.rate))
        shift = np.array([right, down]) * self._side()
        field = self._field
        source = field.places + np.float32(turn) * field.turned - field.weight * shift.astype(np.float32)
        region = picture[field.rows, field.columns]
        made = picture.copy()
        made[field.rows, field.columns] = _sampled(region, source[..., 0], source[..., 1])
        # Around the face all of it moves by the same: the inverse of that map takes the face along.
        back = np.linalg.inv([[1.0, turn], [-turn, 1.0]])
        placed = back @ place
        placed[:, 2] += field.neck - back @ (field.neck - shift)
        return made, placed

    @cached_property
    def _field(self) -> "_Field":
        side, centre = self._side(), self.transform @ (0.5, 0.55, 1)
        neck = centre + self.transform[:, 1] * 0.6  # what a head turns about
        reach = _SWAY_REACH * side
        left, top = np.clip((centre - reach).astype(int), 0, self.size[::-1])
        right, bottom = np.clip((centre + reach).astype(int), 0, self.size[::-1])
        places = np.stack(np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5), -1)
        near = np.clip((1 - np.hypot(*np.moveaxis(places - centre, -1, 0)) / reach) / 0.5, 0, 1)
        weight = (near * near * (3 - 2 * near))[..., None]
        turned = weight * ((places - neck)[..., ::-1] * (1, -1))
        inside = places - (left, top)
        parts = (each.astype(np.float32) for each in (inside, turned, weight))
        return _Field(slice(top, bottom), slice(left, right), neck, *parts)

    def closed(self, count: int) -> np.ndarray:
        """How far the eyes are closed in each of the first `count` frames, float64 [count], 0 to 1."""
        rng = np.random.default_rng(self.seed)
        time = np.arange(count) / float(self.rate)
        shut, at = np.zeros(count), rng.uniform(*BLINK_EVERY)
        while at < count / self.rate:
            falls, rises = (time - at) / BLINK_CLOSES + 1, 1 - (time - at) / BLINK_OPENS
            level = np.clip(np.minimum(falls, rises), 0, 1)
            shut = np.maximum(shut, level * level * (3 - 2 * level))
            at += rng.uniform(*BLINK_EVERY)
        return shut

    def _sway(self, time: float) -> np.ndarray:
        """Turn in radians, shift right and down in fractions of the crop; 0 at time 0."""
        phases = np.random.default_rng(self.seed + 1).uniform(0, 2 * np.pi, (3, len(_PERIODS)))
        speeds = 2 * np.pi / np.array(_PERIODS)
        waves = (np.sin(phases + speeds * time) - np.sin(phases)).mean(1) / 2
        return waves * (np.radians(SWAY_DEGREES), SWAY_SHIFT, 0.5 * SWAY_SHIFT)

    def _side(self) -> float:
        """Pixels across the face's crop."""
        return float(np.hypot(self.transform[0, 0], self.transform[1, 0]))


class _Field(NamedTuple):
    """Where in the photo a head sways, and how each of its pixels follows: float32 [h, w, 2], weight [h, w, 1].

    places: in pixels of the region. turned: how they move by a turn of one radian. neck: what the head turns about.
    """

    rows: slice
    columns: slice
    neck: np.ndarray
    places: np.ndarray
    turned: np.ndarray
    weight: np.ndarray


def _close(picture: np.ndarray, eye: np.ndarray, brow: np.ndarray, side: float, closed: float) -> np.ndarray:
    """One eye, of its six landmarks from one corner over the upper lid to the other and back, closed by so much."""
    along = eye[3] - eye[0]
    length = float(np.hypot(*along))
    if length < 4:
        return picture
    along = along / length
    down = np.array([-along[1], along[0]])

    def seen(points: np.ndarray) -> np.ndarray:
        """In the eye's own coordinates: along the line through its corners, and below it."""
        return (points - eye[0]) @ np.stack([along, down], 1)

    upper, lower = _lid(seen(eye[[1, 2]]), length), _lid(seen(eye[[5, 4]]), length)
    roof = float(seen(brow)[:, 1].max())
    margin = _MARGIN * side
    height, width = picture.shape[:2]
    reach = np.array([length / 2 + margin, length / 2 + margin])
    centre = (eye[0] + eye[3]) / 2
    left, top = np.clip((centre - reach - margin).astype(int), 0, (width, height))
    end_x, end_y = np.clip((centre + reach + margin).astype(int), 0, (width, height))
    x, y = np.meshgrid(np.arange(left, end_x) + 0.5, np.arange(top, end_y) + 0.5)
    local = seen(np.stack([x, y], -1))
    u, v = local[..., 0], local[..., 1]
    above, below = upper(u), lower(u)
    lid = above + closed * np.maximum(below - above, 0)
    start = np.minimum(roof, above - 1)  # where the skin begins to stretch
    # The skin is stretched in its middle: brow and lashes at its ends keep their size.
    part, ends = (v - start) / (lid - start), np.minimum((lid - start) / (above - start), 2.5)
    stretched = part * (ends + part * (3 - 3 * ends + part * (2 * ends - 2)))
    source = np.where((v > start) & (v < lid), start + stretched * (above - start), v)
    place = np.stack([x, y], -1) + (source - v)[..., None] * down
    before = picture[top:end_y, left:end_x]
    skin = _sampled(before, place[..., 0] - left, place[..., 1] - top).astype(np.float32)
    covered, under = (v > above) & (v < lid), (v > below) & (v < below + length / 3) & (u > 0) & (u < length)
    if covered.any() and under.any():
        # A lid that lay folded in the shade of the brow has the light of the skin below the eye.
        gain = np.clip(_LID_LIGHT * before[under].mean(0) / (skin[covered].mean(0) + 1), 1, 2)
        share = (lid - above) / (below - above).max() * np.clip(4 * part * (1 - part), 0, 1)
        skin *= 1 + (gain - 1) * share[..., None]
    made = picture.copy()
    shown = np.where((source != v)[..., None], skin.clip(0, 255).round(), before)
    made[top:end_y, left:end_x] = shown.astype(np.uint8)
    return made


def _lid(points: np.ndarray, length: float) -> Callable[[np.ndarray], np.ndarray]:
    """A lid's height over places along the eye, 0 at and beyond its corners: a cubic through them and two points."""
    at = np.clip(points[:, 0] / length, (0.1, 0.55), (0.45, 0.9)) * length
    slope, bend = np.linalg.solve(np.stack([np.ones(2), at], 1), points[:, 1] / (at * (length - at)))
    return lambda u: np.where((u > 0) & (u < length), u * (length - u) * (slope + bend * u), 0.0)


def _sampled(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pixels of uint8 [H, W, 3] at places [h, w] in pixels, bicubic."""
    height, width = picture.shape[:2]
    grid = torch.from_numpy(np.stack([x * 2 / width - 1, y * 2 / height - 1], -1)).float()[None]
    planes = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
    made = F.grid_sample(planes, grid, mode="bicubic", padding_mode="border", align_corners=False)[0]
    return made.permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
