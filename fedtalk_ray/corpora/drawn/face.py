"""The moving picture of a synthetic person: eyes and mouth drawn in every frame over still layers that sway a little.

The head is one picture, drawn once and then sampled in every frame through a smooth warp: a small sway of the whole
head, the chin following the jaw, the brows their muscles. Eyes and mouth are drawn anew in each frame, all frames at
once. Positions are fractions of the crop's side, as in `face_template`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from fedtalk_ray.corpora.drawn.person import FaceTraits
from fedtalk_ray.corpora.drawn.portrait import EYE_DISTANCE, EYE_Y, bump, coverage, paint, ramp, still_layers
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE

FINE_BELOW = 128
"""In crops of fewer pixels a side eyes and mouth are drawn twice finer, then averaged; in larger ones it shows nothing
and takes half of the time."""


@dataclass(frozen=True)
class Motion:
    """What moves in each frame, float32 arrays of length T.

    shift: [T, 2], of the head, in sides of the crop. turn: rotation in the picture, radians. lids: 1 open, 0 shut.
    gaze: [T, 2] of the irises, in sides. brows: how far they rise, in sides. aperture and width: inner-lip opening and
    outer mouth width, in eye distances.
    """

    shift: np.ndarray
    turn: np.ndarray
    lids: np.ndarray
    gaze: np.ndarray
    brows: np.ndarray
    aperture: np.ndarray
    width: np.ndarray


class _Lips(NamedTuple):
    """The mouth's geometry in each pixel: u is -1 and 1 at its corners; the rest are lengths and heights in sides."""

    u: np.ndarray
    half: np.ndarray
    gap: np.ndarray
    top: np.ndarray
    bottom: np.ndarray


def draw(traits: FaceTraits, motion: Motion, size: int) -> np.ndarray:
    """The frames, uint8 [T, size, size, 3]."""
    detail = max(2, -(-256 // size))
    fine = 2 if size < FINE_BELOW else 1
    back, head, glasses = still_layers(traits, size * detail)
    x, y = _on_head(motion, *_grid(size, (0, 0, size, size), 1))
    frames = np.repeat(_shrink(back, detail)[None], len(motion.turn), axis=0)
    jaw = np.float32(0.6 * EYE_DISTANCE) * motion.aperture[:, None, None]
    drop = jaw * ramp(y, traits.mouth_y - 0.03, traits.mouth_y + 0.08) * ramp(np.abs(x - 0.5), 0.42, 0.16)
    lift = motion.brows[:, None, None] * np.exp(-0.5 * ((y - traits.brow_y) / 0.04) ** 2)
    _over(frames, _sample(head, x, y - drop + lift, detail))
    for eye in (LEFT_EYE, RIGHT_EYE):
        box = _box((eye[0] - 0.12, eye[1] - 0.10, eye[0] + 0.12, eye[1] + 0.08), size)
        x_fine, y_fine = _on_head(motion, *_grid(size, box, fine))
        _paste(frames, box, _eye(traits, motion, x_fine - eye[0], y_fine - eye[1], np.sign(0.5 - eye[0])))
    if traits.glasses:
        _over(frames, _sample(glasses, x, y, detail))
    box = _box((0.5 - 0.27, traits.mouth_y - 0.12, 0.5 + 0.27, traits.mouth_y + 0.25), size)
    x_fine, y_fine = _on_head(motion, *_grid(size, box, fine))
    _paste(frames, box, _mouth(traits, motion, x_fine - np.float32(0.5), y_fine))
    return np.clip(np.rint(frames * 255), 0, 255).astype(np.uint8)


def _grid(size: int, box: tuple[int, int, int, int], fine: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres x [1, 1, w] and y [1, h, 1] of a box (left, top, right, bottom), `fine` times as many."""
    left, top, right, bottom = box
    xs = (np.arange(left * fine, right * fine, dtype=np.float32) + 0.5) / (size * fine)
    ys = (np.arange(top * fine, bottom * fine, dtype=np.float32) + 0.5) / (size * fine)
    return xs[None, None, :], ys[None, :, None]


def _on_head(motion: Motion, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where on the resting head each pixel lies, [T, h, w] twice; the head turns about the point between the eyes."""
    turn = motion.turn[:, None, None]
    dx, dy = motion.shift[:, 0, None, None], motion.shift[:, 1, None, None]
    return x - dx + turn * (y - EYE_Y), y - dy - turn * (x - 0.5)


def _box(edges: tuple[float, float, float, float], size: int) -> tuple[int, int, int, int]:
    low = [max(0, int(np.floor(edge * size))) for edge in edges[:2]]
    high = [min(size, int(np.ceil(edge * size))) for edge in edges[2:]]
    return low[0], low[1], high[0], high[1]


def _shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of factor x factor pixels of [..., H, W, C]."""
    *lead, height, width, channels = image.shape
    blocks = image.reshape(*lead, height // factor, factor, width // factor, factor, channels)
    return blocks.mean(axis=(-2, -4), dtype=np.float32)


def _sample(layer: np.ndarray, x: np.ndarray, y: np.ndarray, detail: int) -> np.ndarray:
    """Read a fine RGBA layer at positions [T, h, w], after the blur that a coarser pixel grid needs."""
    side = layer.shape[0]
    soft = gaussian_filter(layer, (0.38 * detail, 0.38 * detail, 0))
    at = np.stack([y * side - 0.5, x * side - 0.5])
    return np.stack([map_coordinates(soft[..., c], at, order=1, mode="nearest") for c in range(4)], axis=-1)


def _over(frames: np.ndarray, layer: np.ndarray) -> None:
    """Lay a premultiplied RGBA layer over frames, in place."""
    frames *= 1 - layer[..., 3:]
    frames += layer[..., :3]


def _paste(frames: np.ndarray, box: tuple[int, int, int, int], layer: np.ndarray) -> None:
    """Lay an RGBA layer, as fine as the frames or a whole number of times finer, over the pixels of a box."""
    left, top, right, bottom = box
    _over(frames[:, top:bottom, left:right], _shrink(layer, layer.shape[1] // (bottom - top)))


def _eye(traits: FaceTraits, motion: Motion, x: np.ndarray, y: np.ndarray, inner: float) -> np.ndarray:
    """One eye around (0, 0); `inner` is +1 where the nose lies at larger x. Premultiplied RGBA [T, h, w, 4]."""
    layer = np.zeros((*x.shape, 4), np.float32)
    half = np.float32(0.073)
    along = np.clip(x / half, -1.3, 1.3)
    lids = motion.lids[:, None, None]
    axis = y - traits.eye_slant * along * inner
    arc = np.maximum(1 - along**2, 0) ** 0.75
    low = 0.80 * traits.eye_height * arc
    high_open = -1.12 * traits.eye_height * arc * (1 + 0.12 * along * inner)
    high = high_open * lids + (low - 0.004) * (1 - lids)
    within = ramp(np.abs(along), 1.03, 0.97)
    lid = traits.skin * np.array([0.86, 0.78, 0.76])
    paint(layer, lid, coverage(np.maximum(high_open - 0.006 - axis, axis - low)) * within * (1 - lids))
    opened = coverage(np.maximum(high - axis, axis - low)) * within
    paint(
        layer, np.array([0.93, 0.91, 0.90]) * (0.72 + 0.28 * traits.skin.max()) - 0.12 * along[..., None] ** 2, opened
    )
    gx, gy = motion.gaze[:, 0, None, None], motion.gaze[:, 1, None, None]
    reach = np.hypot(x - gx, y - gy + 0.003)
    paint(layer, traits.iris * 0.45, opened * coverage(reach - 0.0325))
    paint(layer, traits.iris * (1.0 + 0.35 * ramp(y - gy, -0.02, 0.03))[..., None], opened * coverage(reach - 0.0275))
    paint(layer, np.full(3, 0.03), opened * coverage(reach - 0.0135))
    paint(layer, np.full(3, 0.20), opened * 0.55 * ramp(axis - high, 0.018, 0.0))
    spark = np.hypot(x - gx - 0.012 * np.sign(traits.light), y - gy + 0.015)
    paint(layer, np.ones(3), opened * 0.9 * coverage(spark - 0.0075))
    span = ramp(np.abs(along), 1.12, 0.98)
    lash = traits.hair * 0.25
    thick = traits.lashes * (1.0 - 0.35 * along * inner)
    paint(layer, lash, 0.92 * span * coverage(np.abs(axis - high + 0.3 * thick) - 0.5 * thick))
    paint(layer, traits.skin * np.array([0.55, 0.40, 0.38]), 0.6 * span * coverage(np.abs(axis - low) - 0.0022))
    crease = high_open - 0.016 + 0.012 * (1 - lids)
    paint(layer, traits.skin * np.array([0.55, 0.42, 0.40]), 0.55 * span * ramp(np.abs(axis - crease), 0.007, 0.001))
    return layer


def _mouth(traits: FaceTraits, motion: Motion, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Lips, teeth, tongue and the dark between them, x from the face's middle. Premultiplied RGBA [T, h, w, 4]."""
    layer = np.zeros((*x.shape, 4), np.float32)
    gap = (motion.aperture * np.float32(EYE_DISTANCE))[:, None, None]
    half = (motion.width * np.float32(0.5 * EYE_DISTANCE))[:, None, None]
    pout = np.clip(1.15 - motion.width / traits.mouth_width, 0, 0.4)[:, None, None]
    u = x / half
    arc = np.maximum(1 - u**2, 0)
    lean = 1 + traits.crooked * u * ramp(gap, 0.0, 0.05)
    line = traits.mouth_y + traits.mouth_curve * u**2 - 0.001 * arc + 0.25 * traits.crooked * gap * u
    inner = np.maximum(1 - (u / 0.93) ** 2, 0) ** 0.65 * lean
    top, bottom = line - 0.35 * gap * inner, line + 0.65 * gap * inner
    cupid = 1 - 0.20 * np.exp(-0.5 * (u / 0.10) ** 2) + 0.10 * np.exp(-0.5 * ((np.abs(u) - 0.22) / 0.12) ** 2)
    upper = top - traits.upper_lip * (1 + pout - 1.2 * gap) * arc**0.8 * cupid
    lower = bottom + traits.lower_lip * (1 + pout - 1.2 * gap) * arc**0.7
    sides = (np.abs(u) - 1) * half
    shade = traits.skin * np.array([0.52, 0.38, 0.36])
    paint(layer, shade, 0.55 * bump(u, y - lower - 0.012, 0, 0, 0.45, 0.010))
    paint(layer, shade, 0.5 * bump(np.abs(u), y - line, 1.0, 0, 0.07, 0.010))
    lips = coverage(np.maximum(np.maximum(upper - y, y - lower), sides))
    middle = np.maximum(1 - u**2, 0)[..., None]
    paint(layer, traits.lips * (0.68 + 0.14 * ramp(y, upper, top + 1e-4)[..., None]), lips)
    below = coverage(np.maximum(bottom - y, sides)) * lips
    deep = ((y - bottom) / (lower - bottom + 1e-4))[..., None]
    paint(layer, np.clip(traits.lips * (0.92 + 0.22 * middle - 0.25 * np.clip(deep, 0, 1) ** 2), 0, 1), below)
    paint(layer, np.ones(3), 0.22 * below * bump(u, deep[..., 0], 0.12 * np.sign(traits.light), 0.38, 0.28, 0.16))
    _inside(traits, layer, x, y, _Lips(u, half, gap, top, bottom))
    seam = np.array([0.20, 0.07, 0.07]) * (0.5 + 0.5 * traits.skin)
    strength = np.maximum(1 - np.abs(u) ** 6, 0) * 0.85
    paint(layer, seam, strength * coverage(np.abs(y - top) - 0.0027))
    paint(layer, seam, 0.6 * strength * coverage(np.abs(y - bottom) - 0.0022))
    return layer


def _inside(traits: FaceTraits, layer: np.ndarray, x: np.ndarray, y: np.ndarray, lips: _Lips) -> None:
    """The open mouth. The upper teeth stay with the skull; tongue and lower teeth go with the jaw."""
    u, half, gap, top, bottom = lips
    hole = coverage(np.maximum(np.maximum(top - y, y - bottom), (np.abs(u) - 0.93) * half))
    paint(layer, np.array([0.16, 0.045, 0.05]), hole)
    tongue = ((x / (0.62 * half)) ** 2 + ((y - bottom) / (0.45 * gap + 1e-3)) ** 2) - 1
    paint(layer, np.array([0.62, 0.26, 0.27]), hole * ramp(tongue, 0.15, -0.5) * ramp(gap, 0.02, 0.05))
    ivory = np.array([1.0, 0.97, 0.90]) * traits.teeth_shade
    edge = traits.mouth_y + traits.teeth - 0.012 * u**2
    seams = np.abs((x / 0.020 + 0.5) % 1 - 0.5) * 0.020
    shade = (1 - 0.5 * np.clip(u, -1, 1) ** 2)[..., None]
    teeth = hole * coverage(np.maximum(y - edge, np.abs(u) - 0.85))
    paint(layer, ivory * shade, teeth)
    paint(layer, np.array([0.45, 0.30, 0.26]), teeth * 0.35 * ramp(seams, 0.004, 0.0))
    paint(layer, np.array([0.16, 0.045, 0.05]), teeth * coverage(np.abs(x) - 0.5 * traits.gap) * (traits.gap > 0))
    if traits.lower_teeth:
        rim = bottom - traits.lower_teeth * ramp(gap, 0.02, 0.07) + 0.01 * u**2
        paint(layer, ivory * shade * 0.85, hole * coverage(np.maximum(rim - y, np.abs(u) - 0.6)))
    paint(layer, np.array([0.12, 0.03, 0.03]), hole * 0.55 * ramp(y - top, 0.012, 0.0))
