"""Who is seen, asked of a network that had no part in the training: an independent judge of identity.

The identity encoder that trains or conditions a model must not be the one that scores it. This judge reads ONNX files
that the user supplies (`fr_feature.onnx`, for example from the npm package faceplugin-face-recognition-js 0.0.1).
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedtalk_ray.media.dlib_models import MissingModelError
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE

FEATURE_FILE = "fr_feature.onnx"

FIRST_FRAME, FRAME_STEP = 5, 15
"""Frames of a clip that are judged: 0.6 s apart, without the first, which is the one that the model was shown."""

ARCFACE_SIDE = 112
ARCFACE_LEFT_EYE = (38.2946, 51.6963)
ARCFACE_RIGHT_EYE = (73.5318, 51.5014)
"""Pixels in the 112 x 112 picture that ArcFace networks are trained on (insightface's five points)."""


class IdentityJudge:
    """Embeds aligned crops; two embeddings of one person are alike (`similarity`).

    folder: holds `fr_feature.onnx`. Raises `MissingModelError` when the file is missing or damaged, or
    onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / FEATURE_FILE
        if not path.is_file():
            raise MissingModelError(f"the identity judge needs {FEATURE_FILE} in {folder}, which has no such file")
        runtime = _onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no narrower base
            reason = str(error).splitlines()[0]
            raise MissingModelError(f"{FEATURE_FILE} in {folder} cannot be read as a network ({reason})") from error
        self._input = self._session.get_inputs()[0].name

    def embed(self, frame: np.ndarray) -> np.ndarray:
        """The identity in one crop aligned to `face_template`: uint8 [S, S, 3] to float32 [512] of length 1."""
        planes = (arcface_view(frame).astype(np.float32) - 127.0) / 128.0
        (features,) = self._session.run(None, {self._input: planes.transpose(2, 0, 1)[None]})
        vector = np.asarray(features, np.float32).reshape(-1)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)


def embed_clip(judge: IdentityJudge, frames: np.ndarray) -> np.ndarray:
    """Embeddings float32 [K, 512] of every 15th frame of a clip uint8 [T, S, S, 3], from the sixth on.

    A clip shorter than that is judged by its last frame.
    """
    chosen = frames[FIRST_FRAME::FRAME_STEP] if len(frames) > FIRST_FRAME else frames[-1:]
    return np.stack([judge.embed(frame) for frame in chosen])


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two embeddings [512], in [-1, 1]."""
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def arcface_view(frame: np.ndarray) -> np.ndarray:
    """The crop uint8 [S, S, 3] as ArcFace wants it: uint8 [112, 112, 3], the eyes on its two eye points.

    That picture reaches beyond the crop (above and at the sides), where it is black: on real
    faces that keeps people further apart than a repeated edge, which draws the same streaks on everybody.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[0] != frame.shape[1] or frame.shape[2] != 3:
        raise ValueError(f"the judge wants uint8 [S, S, 3], a square crop, got {frame.dtype} {list(frame.shape)}")
    side = frame.shape[0]
    left, top, length = _view_in_crop()
    border = math.ceil(side * max(-left, -top, left + length - 1, top + length - 1, 0.0))
    padded = np.pad(frame, ((border, border), (border, border), (0, 0)))
    box = tuple(edge * side + border for edge in (left, top, left + length, top + length))
    size = (ARCFACE_SIDE, ARCFACE_SIDE)
    return np.array(Image.fromarray(padded).resize(size, Image.Resampling.BICUBIC, box=box))


def _view_in_crop() -> tuple[float, float, float]:
    """(left, top, side) of ArcFace's picture in crop fractions; its eyes' tilt, 0.2 pixels, is left out."""
    ours, theirs = np.array([LEFT_EYE, RIGHT_EYE]), np.array([ARCFACE_LEFT_EYE, ARCFACE_RIGHT_EYE])
    crop_per_pixel = (ours[1, 0] - ours[0, 0]) / (theirs[1, 0] - theirs[0, 0])
    left, top = ours.mean(axis=0) - theirs.mean(axis=0) * crop_per_pixel
    return float(left), float(top), float(ARCFACE_SIDE * crop_per_pixel)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingModelError(f"the identity judge needs onnxruntime ({error}): pip install onnxruntime") from error
    return onnxruntime
