"""Who a synthetic person is: everything about a face that is drawn once from a seed and then stays.

Lengths are fractions of the crop's side, as in `face_template`; colours are float32 [3], RGB in 0..1.
"""

from dataclasses import dataclass

import numpy as np

from fedtalk_ray.media.face_template import LEFT_EYE, MOUTH_CENTRE

EYE_Y = LEFT_EYE[1]
SKIN = np.array(
    [(236, 204, 182), (230, 188, 160), (226, 178, 144), (202, 150, 112), (168, 114, 80), (128, 82, 56), (92, 58, 42)]
)
HAIR = np.array(
    [(24, 20, 20), (48, 33, 25), (84, 56, 36), (120, 78, 44), (150, 70, 36), (196, 148, 84), (222, 192, 136),
     (150, 148, 146), (214, 210, 204), (60, 70, 120), (150, 60, 90)]
)  # fmt: skip
HAIR_ODDS = np.array([18, 18, 16, 10, 7, 9, 6, 6, 4, 2, 2]) / 98
IRIS = np.array([(62, 38, 22), (92, 60, 30), (110, 98, 52), (70, 104, 70), (78, 118, 150), (112, 132, 142)])
HAIR_STYLES = ("short", "swept", "fringe", "curly", "parted", "long", "afro", "buzz", "bald", "cap")


@dataclass(frozen=True)
class FaceTraits:
    """What stays the same in every picture of one person. Lengths are fractions of the crop's side."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    cloth: np.ndarray
    backdrop: np.ndarray
    """Two colours, float32 [2, 3], that the background runs between."""
    pattern: int
    """Of the background: 0 gradient, 1 vertical stripes, 2 blurred lights, 3 window panes, 4 wall with a skirting."""
    style: str
    hairline: float
    part: float
    half_width: float
    chin: float
    jaw: float
    """Exponent of the lower face: 2 is pointed, 3 is square."""
    nose_width: float
    nose_y: float
    """Height of its lower end."""
    mouth_y: float
    mouth_width: float
    """Of the mouth at rest, in eye distances."""
    upper_lip: float
    lower_lip: float
    mouth_curve: float
    """Height of the corners below the middle; negative smiles."""
    eye_height: float
    eye_slant: float
    lashes: float
    brow_y: float
    brow_width: float
    brow_arch: float
    brow_slant: float
    glasses: int
    """0 none, 1 round, 2 oblong."""
    beard: float
    blush: float
    freckles: float
    folds: float
    light: float
    """Where the light comes from: -1 left, 1 right."""
    teeth: float
    """How far the upper teeth reach below the resting upper lip. Hidden while the mouth is shut, as all below."""
    teeth_shade: float
    gap: float
    """Width of the gap between the middle teeth."""
    lower_teeth: float
    crooked: float
    """How lopsided the mouth opens: 0 even, up to 0.5 to one side."""
    texture: int
    """Seed of strands, freckles and background detail."""


def face_traits(rng: np.random.Generator, high_voice: float) -> FaceTraits:
    """Draw a person. high_voice, 0..1, makes beards rare and lips and lashes fuller where the voice is high."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    tone = rng.uniform(0, len(SKIN) - 1.001)
    skin = SKIN[int(tone)] + (SKIN[int(tone) + 1] - SKIN[int(tone)]) * (tone % 1) + rng.normal(0, 4, 3)
    hair = HAIR[rng.choice(len(HAIR), p=HAIR_ODDS)] * rng.uniform(0.85, 1.15) + rng.normal(0, 4, 3)
    painted = rng.uniform() < 0.35 * high_voice
    lips = skin * (0.80, 0.56, 0.56) + (14, 0, 4)
    if painted:
        lips = 0.35 * lips + 0.65 * np.array([(172, 38, 52), (150, 40, 74), (196, 84, 84)][rng.integers(3)])
    styles = np.array([3, 3, 2, 2, 2.5, 0.4 + 4 * high_voice, 1, 1.2 - high_voice, 1 - 0.9 * high_voice, 0.9])
    hue = rng.uniform(0, 2 * np.pi)
    base = 0.5 + 0.16 * np.cos(hue + np.array([0, 2.1, 4.2])) + rng.uniform(-0.22, 0.25)
    return FaceTraits(
        skin=_colour(skin / 255),
        hair=_colour(hair / 255),
        iris=_colour(IRIS[rng.integers(len(IRIS))] * rng.uniform(0.8, 1.15) / 255),
        lips=_colour(lips / 255),
        cloth=_colour(rng.uniform(0.08, 0.85) * (0.75 + 0.35 * np.cos(rng.uniform(0, 6.28) + np.array([0, 2.1, 4.2])))),
        backdrop=np.stack([_colour(base), _colour(base * rng.uniform(0.55, 0.85) + rng.normal(0, 0.04, 3))]),
        pattern=int(rng.integers(5)),
        style=HAIR_STYLES[rng.choice(len(HAIR_STYLES), p=styles / styles.sum())],
        hairline=EYE_Y - between(0.19, 0.255),
        part=between(-0.16, 0.16),
        half_width=between(0.355, 0.405),
        chin=EYE_Y + between(0.62, 0.66),
        jaw=between(2.0, 3.0),
        nose_width=between(0.062, 0.092),
        nose_y=EYE_Y + between(0.26, 0.295),
        mouth_y=MOUTH_CENTRE[1] + between(-0.012, 0.012),
        mouth_width=between(0.70, 0.90),
        upper_lip=between(0.022, 0.036) + 0.006 * high_voice,
        lower_lip=between(0.030, 0.050) + 0.006 * high_voice,
        mouth_curve=between(-0.018, -0.002),
        eye_height=between(0.021, 0.029),
        eye_slant=between(-0.010, 0.012),
        lashes=between(0.007, 0.010) + 0.006 * high_voice * between(0, 1),
        brow_y=EYE_Y - between(0.106, 0.132),
        brow_width=between(0.010, 0.020) - 0.003 * high_voice,
        brow_arch=between(0.008, 0.028),
        brow_slant=between(-0.012, 0.012),
        glasses=int(rng.choice([0, 1, 2], p=[0.74, 0.13, 0.13])),
        beard=float(
            rng.choice([0.0, between(0.15, 0.35), between(0.4, 0.62)], p=[0.6, 0.2, 0.2]) * (high_voice < 0.45)
        ),
        blush=between(0.0, 0.22),
        freckles=float(rng.uniform() < 0.2) * between(0.3, 0.8),
        folds=between(0.0, 0.5),
        light=between(-0.8, 0.8),
        teeth=between(-0.004, 0.014),
        teeth_shade=between(0.72, 0.97),
        gap=float(rng.uniform() < 0.4) * between(0.006, 0.016),
        lower_teeth=float(rng.uniform() < 0.4) * between(0.008, 0.018),
        crooked=between(-0.5, 0.5),
        texture=int(rng.integers(2**31)),
    )


def _colour(rgb: np.ndarray) -> np.ndarray:
    return np.clip(rgb, 0.03, 0.98).astype(np.float32)
