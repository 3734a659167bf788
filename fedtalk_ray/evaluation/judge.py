"""Who is seen, asked of a network that had no part in the training: an independent judge of identity.

The identity encoder that trains or conditions a model must not be the one that scores it. This judge reads ONNX files
that the user supplies (`fr_feature.onnx`, for example from the npm package faceplugin-face-recognition-js 0.0.1).
"""

from pathlib import Path

import numpy as np

from fedtalk_ray.media.dlib_models import MissingModelError
from fedtalk_ray.media.face_view import arcface_view
from fedtalk_ray.media.onnx_session import open_onnx

FEATURE_FILE = "fr_feature.onnx"

FIRST_FRAME, FRAME_STEP = 5, 15
"""Frames of a clip that are judged: 0.6 s apart, without the first, which is the one that the model was shown."""


class IdentityJudge:
    """Embeds aligned crops; two embeddings of one person are alike (`similarity`).

    folder: holds `fr_feature.onnx`. Raises `MissingModelError` when the file is missing or damaged, or
    onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / FEATURE_FILE
        if not path.is_file():
            raise MissingModelError(f"the identity judge needs {FEATURE_FILE} in {folder}, which has no such file")
        self._session = open_onnx(path)
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
