"""Our aligned crop as other networks want to see a face: the part of the picture that each was trained on.

Crops lie as `face_template` says. A view is a box in fractions of the crop, chosen so that the eyes fall where the
network expects them; it may reach beyond the crop, where it is black. On real faces black keeps people further apart
than a repeated edge, which draws the same streaks on everybody.
"""

import math

import numpy as np
from PIL import Image

from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in fractions of the crop's side."""


def box_around_eyes(left_eye: tuple[float, float], right_eye: tuple[float, float], aspect: float = 1.0) -> Box:
    """The box in the crop, in which the eyes lie at these fractions (x, y) of its width and height.

    aspect: width / height of the box. The eyes' tilt is left out: the crop's eyes are level.
    """
    width = (RIGHT_EYE[0] - LEFT_EYE[0]) / (right_eye[0] - left_eye[0])
    height = width / aspect
    left = (LEFT_EYE[0] + RIGHT_EYE[0] - (left_eye[0] + right_eye[0]) * width) / 2
    top = (LEFT_EYE[1] + RIGHT_EYE[1] - (left_eye[1] + right_eye[1]) * height) / 2
    return left, top, left + width, top + height


ARCFACE_SIDE = 112
ARCFACE_BOX = box_around_eyes((38.2946 / 112, 51.6963 / 112), (73.5318 / 112, 51.5014 / 112))
"""ArcFace networks are trained on 112 x 112 pictures with the eyes at these pixels (insightface's five points)."""

DLIB_SIDE = 150
DLIB_BOX = box_around_eyes((0.3170, 0.3107), (0.6698, 0.3107))
"""dlib's network sees `get_face_chip(..., size=150, padding=0.25)`; these are the eyes of its mean face there."""

FACENET_SIDE = 160
FACENET_BOX = box_around_eyes((0.285, 0.393), (0.715, 0.393), aspect=0.7235)
"""FaceNet sees MTCNN's upright box, stretched to a square. Medians of MTCNN's boxes over 12 GRID speakers."""


def cut_view(frame: np.ndarray, box: Box, side: int) -> np.ndarray:
    """The box of an aligned crop uint8 [S, S, 3], resampled (bicubic) to uint8 [side, side, 3]."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[0] != frame.shape[1] or frame.shape[2] != 3:
        raise ValueError(f"a view needs uint8 [S, S, 3], a square crop, got {frame.dtype} {list(frame.shape)}")
    size = frame.shape[0]
    border = math.ceil(size * max(-box[0], -box[1], box[2] - 1, box[3] - 1, 0.0))
    padded = np.pad(frame, ((border, border), (border, border), (0, 0)))
    left, top, right, bottom = (edge * size + border for edge in box)
    picture = Image.fromarray(padded)
    return np.array(picture.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, right, bottom)))


def arcface_view(frame: np.ndarray) -> np.ndarray:
    """The crop uint8 [S, S, 3] as ArcFace wants it: uint8 [112, 112, 3], the eyes on its two eye points."""
    return cut_view(frame, ARCFACE_BOX, ARCFACE_SIDE)
