"""How far the lips are open, read from the pictures alone: the series that lip-sync is judged by.

Two real sentences of one person agree by about 0.1 (GRID, correlation) while both are spoken, so agreement inside
the speech (`speech.spoken`) means that the lips follow the sound. Over whole clips they agree by 0.4 only because both
begin and end in silence. A blurred picture reads a little more open throughout: correlate, do not compare levels.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from fedtalk_ray.media.dlib_models import rectangle, shape_predictor_68
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE
from fedtalk_ray.media.video import FPS

FACE_BOXES = ((0.60, 2.55), (0.68, 2.28))
"""(how far the centre lies below the eyes, side) in eye distances: the squares handed to the landmark model in place
of a detection.

The first is where dlib's detector sees the face in aligned crops of real speakers (the median). The mean of two
readings saves the clips in which one box alone goes astray (moustaches, glasses).
"""

WORKING_SIDE = 256
"""Pixels the crop's side is brought to: the landmark model compares single pixels and wants them smooth."""

BORDER = 0.15
"""Edge pixels repeated around the crop, in fractions of its side. The chin lies at its lower edge, at times below it;
the model reads black beyond the picture and then misplaces the lips."""

MOUTH_POINTS = slice(48, 68)
MIRRORED = [6, 5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 16, 15, 14, 13, 12, 19, 18, 17]
"""Which of the mouth's points lies where each one does in a mirror: 12 around the outer lip, 8 around the inner."""
MIRRORED_FACE = [
    *range(16, -1, -1),
    *range(26, 16, -1),
    *(27, 28, 29, 30, 35, 34, 33, 32, 31),
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
    *(48 + point for point in MIRRORED),
]
"""The same of all 68 points: jaw, brows, nose, eyes, mouth."""
LIP_MOTION = 1 + 2 * len(MIRRORED)
"""Numbers of `lip_motion` a frame."""

SPEAKING = 0.015
"""Least standard deviation of the aperture of somebody who speaks; in GRID's 148 clips it is 0.017 to 0.117."""

INNER_LIP_PAIRS = ((61, 67), (62, 66), (63, 65))


def lip_aperture(frames: np.ndarray) -> np.ndarray:
    """Distance of the inner lips over the distance of the eyes, one value a frame, not smoothed.

    frames: uint8 [T, S, S, 3], crops aligned to `face_template`. Returns float32 [T]: about 0 for closed lips and
    0.3 for a wide open mouth. Raises `ValueError` for other frames and `MissingModelError` without the landmark model.
    """
    return aperture_of(face_landmarks(frames))


def aperture_of(landmarks: np.ndarray) -> np.ndarray:
    """The aperture from points [T, 68, 2] in any unit: the mean of three inner-lip distances over the eyes' distance.

    Returns float32 [T]. Works for points found on whole frames as well.
    """
    gaps = [np.linalg.norm(landmarks[:, upper] - landmarks[:, lower], axis=-1) for upper, lower in INNER_LIP_PAIRS]
    eyes = landmarks[:, 36:42].mean(axis=1) - landmarks[:, 42:48].mean(axis=1)
    return (np.mean(gaps, axis=0) / np.linalg.norm(eyes, axis=-1)).astype(np.float32)


def lip_motion(landmarks: np.ndarray) -> np.ndarray:
    """float32 [T, LIP_MOTION] of the points [T, 68, 2] of one piece: the aperture, and how the mouth's points move.

    Displacements are taken from the piece's own mean, where a mouth habitually sits taken out, and made even left and
    right, so that mirrored pictures have the same.
    """
    mouth = landmarks[:, MOUTH_POINTS].astype(np.float64)
    moved = mouth - mouth.mean(0)
    even = (moved + moved[:, MIRRORED] * (-1, 1)) / 2
    return np.concatenate([aperture_of(landmarks)[:, None], even.reshape(len(even), -1)], axis=1).astype(np.float32)


def lips_of(landmarks: np.ndarray, index: int, rate: Fraction | int = FPS) -> np.ndarray:
    """`lip_motion` of one frame of points [T, 68, 2], float32 [LIP_MOTION]; NaN is what they do not say.

    The aperture is always known; where a mouth habitually sits, of somebody who is seen speaking for a second or more.
    rate: frames a second.
    """
    motion = lip_motion(landmarks)[index]
    if len(landmarks) < rate or aperture_of(landmarks).std() < SPEAKING:
        motion[1:] = np.nan
    return motion


def face_landmarks(frames: np.ndarray) -> np.ndarray:
    """dlib's 68 points of each frame, as float32 [T, 68, 2], (x, y) in fractions of the crop's side.

    frames: uint8 [T, S, S, 3], crops aligned to `face_template`, so no detector is needed. About 4 ms a frame.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != frames.shape[2] or frames.shape[3] != 3:
        need = "uint8 [T, S, S, 3], square crops"
        raise ValueError(f"lips are read from {need}, got {frames.dtype} {list(frames.shape)}")
    side = frames.shape[1]
    border = math.ceil(BORDER * side)
    zoom = WORKING_SIDE / side
    working = round((side + 2 * border) * zoom)
    boxes = [_box(below, length, border * zoom) for below, length in FACE_BOXES]
    model = shape_predictor_68()
    found = np.empty((len(frames), 68, 2), np.float32)
    for index, frame in enumerate(frames):
        if index and np.array_equal(frame, frames[index - 1]):
            found[index] = found[index - 1]  # a still costs one reading
            continue
        padded = np.pad(frame, ((border, border), (border, border), (0, 0)), mode="edge")
        picture = np.array(Image.fromarray(padded).resize((working, working), Image.Resampling.BICUBIC))
        readings = [[(point.x, point.y) for point in model(picture, box).parts()] for box in boxes]
        # A point names a pixel; its centre lies half a pixel further in the template's coordinates.
        found[index] = (np.mean(readings, axis=0) + 0.5 - border * zoom) / WORKING_SIDE
    return found


def _box(below: float, length: float, offset: float) -> Any:
    unit = (RIGHT_EYE[0] - LEFT_EYE[0]) * WORKING_SIDE
    side = round(length * unit)
    left = round((LEFT_EYE[0] + RIGHT_EYE[0]) / 2 * WORKING_SIDE - side / 2 + offset)
    top = round(LEFT_EYE[1] * WORKING_SIDE + below * unit - side / 2 + offset)
    return rectangle(left, top, left + side - 1, top + side - 1)
