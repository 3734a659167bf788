"""The layers of a synthetic person's picture that stand still: background, head, glasses.

Shapes are implicit functions, negative inside, made into soft coverage by their gradient, so edges have no stairs at
any size. Skin is lit through a height map, which is what makes it a face and not an icon. Positions are fractions of
the crop's side, as in `face_template`.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from fedtalk_ray.corpora.drawn.person import EYE_Y, FaceTraits
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE

EYE_DISTANCE = RIGHT_EYE[0] - LEFT_EYE[0]


def still_layers(traits: FaceTraits, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Background float32 [side, side, 3], and head and glasses as premultiplied RGBA, float32 [side, side, 4]."""
    rng = np.random.default_rng(traits.texture)
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return _background(traits, x, y, rng), _head(traits, x, y, rng), _glasses(traits, x, y)


def coverage(field: np.ndarray) -> np.ndarray:
    """How much of each pixel lies where an implicit function [..., H, W] is negative, 0..1."""
    dy, dx = np.gradient(field, axis=(-2, -1))
    return np.clip(0.5 - field / (np.hypot(dx, dy) + 1e-7), 0, 1)


def bump(x: np.ndarray, y: np.ndarray, cx: float, cy: float, sx: float, sy: float) -> np.ndarray:
    """A soft spot of height 1: every blush, shadow and hill is one of these."""
    return np.exp(-0.5 * (((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2))


def paint(image: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> None:
    """Lay a colour over an image [..., 3] or a premultiplied RGBA layer [..., 4], in place."""
    alpha, colour = np.asarray(alpha, np.float32), np.asarray(colour, np.float32)
    for channel in range(image.shape[-1]):  # one plane at a time: numpy is slow over a last axis of three
        plane = image[..., channel]
        plane += alpha * ((1.0 if channel == 3 else colour[..., channel]) - plane)


def ramp(value: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between (or falling, when low > high)."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _noise(shape: tuple[int, int], sigma: float | tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of unit deviation; sigma is a fraction of the height."""
    field = gaussian_filter(rng.standard_normal(shape, np.float32), np.multiply(sigma, shape[0]), mode="wrap")
    return (field - field.mean()) / (field.std() + 1e-9)


def _strands(x: np.ndarray, y: np.ndarray, part: float, rng: np.random.Generator, curl: float) -> np.ndarray:
    """Light and dark along hairs that fan out from the parting: noise that is long along the hair."""
    side = x.shape[0]
    angle = np.arctan2(x - 0.5 - part, y - EYE_Y + 0.59) + curl * 0.05 * _noise(x.shape, 0.03, rng)
    reach = np.hypot(x - 0.5 - part, y - EYE_Y + 0.59)
    grain = _noise((side, side), (0.10, 0.006), rng) + 0.6 * _noise((side, side), (0.15, 0.02), rng)
    column = ((angle / np.pi + 0.5) * 1.4 * side).astype(int) % side
    row = (reach * 0.6 * side).astype(int) % side
    return grain[row, column]


def _background(traits: FaceTraits, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    near, far = traits.backdrop
    mix = ramp(0.75 * y + 0.25 * x * np.sign(traits.light), 0.0, 1.0)
    if traits.pattern == 1:
        mix = 0.5 * mix + 0.35 * (0.5 + 0.5 * np.tanh(4 * np.sin(2 * np.pi * x * (5 + traits.texture % 5))))
    elif traits.pattern == 2:
        for _ in range(14):
            radius, spot = rng.uniform(0.03, 0.10), rng.uniform(0, 1, 2)
            mix = mix - 0.5 * ramp(np.hypot(x - spot[0], y - spot[1]), radius, radius * 0.6) * rng.uniform(0.4, 1)
    elif traits.pattern == 3:
        panes = np.minimum(np.abs((x * 2.5 + 0.25) % 1 - 0.5), np.abs((y * 2 + traits.part) % 1 - 0.5))
        mix = mix + 0.6 * ramp(panes, 0.06, 0.04)
    elif traits.pattern == 4:
        above = y - 0.53 - traits.part
        mix = 0.4 * mix + 0.9 * ramp(above, -0.01, 0.0) - 0.3 * ramp(np.abs(above - 0.01), 0.02, 0.012)
    image = near + (far - near) * mix[..., None]
    image *= 1 + 0.02 * _noise(x.shape, 0.02, rng)[..., None]
    centre = np.abs(x - 0.5)
    if traits.style in ("long", "parted"):
        _hair_mass(traits, image, x, y, rng, y_end=1.2 if traits.style == "long" else EYE_Y + 0.46)
    neck = coverage(centre - 0.185 - 0.5 * np.maximum(y - EYE_Y - 0.56, 0) ** 1.3)
    paint(image, traits.skin * np.array([0.56, 0.46, 0.44]), neck)
    shoulders = coverage(EYE_Y + 0.59 + 0.28 * np.maximum(centre - 0.21, 0) + 1.1 * np.maximum(0.21 - centre, 0) - y)
    paint(image, traits.cloth, shoulders)
    paint(image, traits.cloth * 0.6, shoulders * bump(centre, y, 0.18, EYE_Y + 0.64, 0.03, 0.06))
    return np.clip(image, 0, 1).astype(np.float32)


def _hair_mass(
    traits: FaceTraits, image: np.ndarray, x: np.ndarray, y: np.ndarray, rng: np.random.Generator, y_end: float
) -> None:
    """Hair behind the head, down to `y_end`."""
    wide = traits.half_width + 0.07 + 0.02 * np.sin(9 * y + 6 * traits.part)
    field = np.maximum(np.abs(x - 0.5) - wide - 0.05 * ramp(y, EYE_Y + 0.06, EYE_Y + 0.56), y - y_end)
    shade = 0.62 + 0.16 * _strands(x, y, traits.part, rng, 0.5) - 0.25 * ramp(np.abs(x - 0.5), 0.40, 0.30)
    paint(
        image, traits.hair * np.clip(shade, 0.25, 1.3)[..., None], coverage(field + 0.012 * _noise(x.shape, 0.02, rng))
    )


def _head(traits: FaceTraits, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Skin, ears, brows, beard and the hair in front, but neither eyes nor mouth."""
    layer = np.zeros((*x.shape, 4), np.float32)
    face = _face_field(traits, x, y)
    relief = _relief(traits, x, y, face)
    shade, gleam = _light(traits, relief)
    across = np.abs(x - 0.5)
    for edge in (-1, 1):
        ear = ((x - 0.5 - edge * (traits.half_width + 0.012)) / 0.045) ** 2 + ((y - EYE_Y - 0.11) / 0.095) ** 2 - 1
        inner = bump(x, y, 0.5 + edge * (traits.half_width + 0.018), EYE_Y + 0.11, 0.016, 0.05)
        paint(layer, traits.skin * (0.82 - 0.3 * inner[..., None]) * np.array([1, 0.92, 0.9]), coverage(ear))
    tint = np.stack([shade**0.85, shade**1.08, shade**1.14], axis=-1)
    paint(layer, np.clip(traits.skin * tint + 0.11 * gleam[..., None] * (0.4 + traits.skin), 0, 1), coverage(face))
    inside = coverage(face)
    rose = traits.skin * np.array([1.04, 0.72, 0.70])
    for edge in (-1, 1):
        paint(layer, rose, inside * traits.blush * bump(x, y, 0.5 + edge * 0.21, EYE_Y + 0.22, 0.075, 0.055))
        socket = bump(x, y, 0.5 + edge * 0.165, EYE_Y - 0.045, 0.07, 0.028)
        paint(layer, traits.skin * np.array([0.60, 0.48, 0.46]), inside * 0.42 * socket)
        paint(
            layer,
            traits.skin * np.array([0.72, 0.6, 0.6]),
            inside * 0.3 * bump(x, y, 0.5 + edge * 0.17, EYE_Y + 0.06, 0.06, 0.016),
        )
        fold = across - (0.10 + 0.22 * (y - EYE_Y - 0.26)) - 0.25 * np.maximum(y - EYE_Y - 0.28, 0) ** 1.5
        crease = (
            np.exp(-0.5 * (fold / 0.008) ** 2)
            * ramp(y, EYE_Y + 0.245, EYE_Y + 0.29)
            * ramp(y, EYE_Y + 0.38, EYE_Y + 0.32)
            * (np.sign(x - 0.5) == edge)
        )
        paint(layer, traits.skin * np.array([0.62, 0.48, 0.46]), inside * traits.folds * 0.6 * crease)
    _nose(traits, layer, x, y)
    if traits.freckles:
        spots = ramp(_noise(x.shape, 0.006, rng), 1.5, 2.0) * np.exp(
            -0.5 * (((y - EYE_Y - 0.16) / 0.06) ** 2 + ((across - 0.14) / 0.11) ** 2)
        )
        paint(layer, traits.skin * np.array([0.66, 0.48, 0.38]), inside * traits.freckles * spots)
    if traits.beard:
        grain = 0.85 + 0.15 * _noise(x.shape, (0.012, 0.004), rng)
        cheek = EYE_Y + 0.16 + 0.32 * np.clip(1.25 - across / (0.8 * traits.half_width), 0, 1) ** 0.8
        chin = traits.mouth_y + 0.085 + 2.0 * across**2
        lower = ramp(y, np.minimum(cheek, chin) - 0.03, np.minimum(cheek, chin) + 0.06)
        stache = bump(x, y, 0.5, traits.mouth_y - 0.060, 0.085, 0.010) * 0.4
        paint(layer, traits.hair * 0.85, inside * np.clip(np.maximum(lower, stache) * grain, 0, 1) * traits.beard)
    _brows(traits, layer, x, y, rng)
    _front_hair(traits, layer, x, y, face, rng)
    return layer


def _face_field(traits: FaceTraits, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Half an ellipse above the cheekbones, a squarer one below."""
    middle = EYE_Y + 0.08
    across = np.abs(x - 0.5) / traits.half_width
    up = np.clip(middle - y, 0, None) / 0.46
    down = np.clip(y - middle, 0, None) / (traits.chin - middle)
    taper = across * (1 + 0.07 * ramp(down, 0.15, 0.8))
    power = np.where(y < middle, 2.2, 2.2 + (traits.jaw - 2.2) * ramp(down, 0, 0.5))
    return taper**power + np.where(y < middle, up**2.2, down**power) - 1


def _relief(traits: FaceTraits, x: np.ndarray, y: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Height of the skin towards the viewer, in sides of the crop."""
    height = 0.26 * (1 - np.clip(face + 1, 0, 1.2) ** 1.6)
    tip = traits.nose_y - 0.035
    width = 0.020 + 0.016 * ramp(y, EYE_Y + 0.06, tip)
    height = height + 0.055 * np.exp(-0.5 * ((x - 0.5) / width) ** 2) * ramp(y, EYE_Y - 0.07, tip) * ramp(
        y, tip + 0.045, tip + 0.005
    )
    height += 0.030 * bump(x, y, 0.5, tip, 0.030, 0.024)
    for edge in (-1, 1):
        height += 0.024 * bump(x, y, 0.5 + edge * traits.nose_width * 0.72, traits.nose_y - 0.018, 0.020, 0.018)
        height -= 0.030 * bump(x, y, 0.5 + edge * 0.165, EYE_Y, 0.075, 0.045)
        height += 0.022 * bump(x, y, 0.5 + edge * 0.24, EYE_Y + 0.16, 0.09, 0.06)
        height += 0.012 * bump(x, y, 0.5 + edge * 0.17, EYE_Y - 0.10, 0.09, 0.025)
    height += 0.022 * bump(x, y, 0.5, traits.mouth_y, 0.12, 0.06)
    height -= 0.014 * bump(x, y, 0.5, traits.mouth_y + 0.082, 0.07, 0.016)
    height += 0.020 * bump(x, y, 0.5, traits.chin - 0.055, 0.065, 0.035)
    height -= 0.004 * bump(x, y, 0.5, traits.mouth_y - 0.068, 0.010, 0.022)
    return height


def _light(traits: FaceTraits, relief: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Diffuse shade (0.42 to 1.02) and gleam (0..1) of a height map under one lamp and the sky."""
    dy, dx = np.gradient(relief, 1 / relief.shape[0])
    normal = np.stack([-dx, -dy, np.ones_like(dx)]) / np.sqrt(dx**2 + dy**2 + 1)
    lamp = np.array([0.55 * traits.light, -0.45, 0.80])
    lamp /= np.linalg.norm(lamp)
    half = lamp + np.array([0, 0, 1])
    half /= np.linalg.norm(half)
    diffuse = np.clip(np.tensordot(lamp, normal, 1), 0, 1)
    gleam = np.clip(np.tensordot(half, normal, 1), 0, 1) ** 24
    return (0.42 + 0.60 * diffuse).astype(np.float32), gleam.astype(np.float32)


def _nose(traits: FaceTraits, layer: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    base = traits.nose_y
    dark = traits.skin * np.array([0.34, 0.22, 0.20])
    for edge in (-1, 1):
        paint(
            layer,
            dark,
            0.85 * ramp(bump(x, y, 0.5 + edge * traits.nose_width * 0.48, base - 0.004, 0.016, 0.008), 0.25, 0.9),
        )
        wing = bump(x, y, 0.5 + edge * traits.nose_width * 1.02, base - 0.018, 0.008, 0.020)
        paint(layer, traits.skin * np.array([0.55, 0.42, 0.40]), 0.5 * wing)
    paint(
        layer,
        traits.skin * np.array([0.55, 0.42, 0.40]),
        0.55 * bump(x, y, 0.5, base + 0.006, traits.nose_width * 0.6, 0.009),
    )


def _brows(traits: FaceTraits, layer: np.ndarray, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> None:
    grain = 0.9 + 0.15 * _noise(x.shape, 0.005, rng)
    dark = traits.hair * (0.42 + 0.25 * (traits.hair.mean() < 0.3))
    for edge in (-1, 1):
        along = ((x - 0.5) * edge - 0.190) / 0.122
        ridge = traits.brow_y - traits.brow_arch * (1 - 0.8 * (along - 0.15) ** 2) - traits.brow_slant * along
        thick = traits.brow_width * np.clip(1.05 - 0.45 * along, 0.3, 1.5)
        field = np.maximum(np.abs(y - ridge) - thick, (np.abs(along) - 1) * 0.1)
        paint(layer, dark, np.clip(ramp(field, 0.006, -0.006) * grain, 0, 1) * 0.92)


def _front_hair(
    traits: FaceTraits, layer: np.ndarray, x: np.ndarray, y: np.ndarray, face: np.ndarray, rng: np.random.Generator
) -> None:
    """Hair over the forehead and beside the face, with its shadow on the skin."""
    style, u = traits.style, (x - 0.5) / traits.half_width
    if style == "bald":
        return
    rough = _noise(x.shape, 0.018, rng)
    edge, volume, curl = traits.hairline + 0.34 * np.abs(u) ** 5, 0.035, 0.25
    if style == "swept":
        edge = traits.hairline + 0.10 * np.abs(u - 2 * traits.part) ** 1.5 + 0.25 * np.abs(u) ** 6
    elif style == "fringe":
        edge, volume = EYE_Y - 0.155 + 0.010 * rough + 0.02 * np.sin(40 * x) + 0.3 * np.abs(u) ** 8, 0.05
    elif style == "curly":
        edge, volume, curl = edge + 0.02 + 0.018 * rough, 0.085, 6.0
    elif style in ("parted", "long"):
        edge, volume = traits.hairline - 0.02 + 0.42 * np.abs(u - traits.part * (style == "parted")) ** 2.6, 0.075
    elif style == "afro":
        edge, volume, curl = edge + 0.012 * rough, 0.13, 12.0
    elif style == "buzz":
        volume = 0.006
    elif style == "cap":
        edge, volume = EYE_Y - 0.205 + 0.02 * u**2, 0.03
    top = ((x - 0.5) / (traits.half_width + volume)) ** 2 + ((y - EYE_Y - 0.08) / 0.60) ** 2 - 1
    if style in ("curly", "afro"):
        top = top + 0.07 * rough
    end = {"parted": EYE_Y + 0.38, "long": 1.3}.get(style, EYE_Y + 0.09 + 0.2 * traits.part)
    field = np.maximum(np.maximum(top, y - edge), y - end)
    if style in ("long", "parted"):
        lock = np.maximum(
            np.abs(np.abs(x - 0.5) - traits.half_width - 0.03) - 0.055 + 0.03 * ramp(y, EYE_Y - 0.04, EYE_Y + 0.56),
            y - end,
        )
        field = np.minimum(field, np.maximum(lock, EYE_Y - 0.14 - y))
    shadow = gaussian_filter(coverage(field), 0.02 * x.shape[0])
    paint(layer, traits.skin * np.array([0.50, 0.38, 0.36]), coverage(face) * 0.7 * np.clip(shadow * 1.3, 0, 1))
    strands = _strands(x, y, traits.part, rng, curl)
    sheen = np.exp(-0.5 * ((y - EYE_Y + 0.23 - 0.15 * u**2) / 0.05) ** 2) * (0.7 + 0.3 * strands)
    shade = 0.80 + 0.17 * strands + 0.30 * sheen - 0.25 * ramp(np.abs(u), 0.7, 1.2)
    colour = traits.hair * np.clip(shade, 0.3, 1.6)[..., None] + 0.05 * sheen[..., None]
    alpha = coverage(field)
    if style == "buzz":
        alpha = gaussian_filter(alpha, 0.012 * x.shape[0]) * np.clip(0.72 + 0.1 * strands, 0, 0.9)
    if style == "cap":
        knit = 0.85 + 0.12 * np.sin(2 * np.pi * x * 26) - 0.3 * np.exp(-0.5 * ((y - edge + 0.055) / 0.006) ** 2)
        colour = traits.cloth[::-1] * (knit * (1.05 - 0.5 * u**2))[..., None]
    paint(layer, np.clip(colour, 0, 1), alpha)


def _glasses(traits: FaceTraits, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    layer = np.zeros((*x.shape, 4), np.float32)
    if not traits.glasses:
        return layer
    frame = np.array([(0.07, 0.06, 0.06), (0.30, 0.18, 0.10), (0.62, 0.60, 0.58)])[traits.texture % 3]
    rim = 0.006 + 0.004 * (traits.texture % 2)
    for centre in (LEFT_EYE[0], RIGHT_EYE[0]):
        dx, dy = np.abs(x - centre) / 0.135, np.abs(y - EYE_Y - 0.012) / (0.105 if traits.glasses == 1 else 0.078)
        power = 2.0 if traits.glasses == 1 else 4.0
        field = ((dx**power + dy**power) ** (1 / power) - 1) * 0.1
        paint(
            layer,
            np.array([0.85, 0.92, 0.97]),
            coverage(field) * (0.05 + 0.12 * ramp(x - y - centre + EYE_Y, 0.02, 0.10)),
        )
        paint(layer, frame, coverage(np.abs(field) - rim))
    across = np.abs(x - 0.5)
    paint(layer, frame, coverage(np.maximum(np.abs(y - EYE_Y + 0.015 - 0.8 * across**2) - rim * 0.9, across - 0.047)))
    arms = np.maximum(np.abs(y - EYE_Y + 0.02) - rim, np.maximum(0.312 - across, across - traits.half_width - 0.01))
    paint(layer, frame, coverage(arms))
    return layer
