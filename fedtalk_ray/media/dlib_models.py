"""The face detector, the 68-point landmark model and the recognition network of dlib, loaded once per process.

The models are files of the package `face_recognition_models` (CC0). That package is found but never imported:
its `__init__` needs `pkg_resources`, which setuptools no longer brings.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any

from fedtalk_ray.errors import UserError

MODELS_PACKAGE = "face_recognition_models"
LANDMARKS_FILE = "shape_predictor_68_face_landmarks.dat"
RECOGNITION_FILE = "dlib_face_recognition_resnet_model_v1.dat"


class MissingModelError(UserError, RuntimeError):
    """A model file or the library that reads it is not installed; the message is one line that says how to get it."""


@functools.cache
def face_detector() -> Any:
    """dlib's frontal face detector: call it with uint8 [H, W, 3] and get `dlib.rectangle`s in pixels.

    Raises `MissingModelError` when dlib is not installed.
    """
    return _dlib().get_frontal_face_detector()


@functools.cache
def shape_predictor_68() -> Any:
    """dlib's landmark model: call it with uint8 [H, W, 3] and a `dlib.rectangle`, get 68 points in pixels.

    The points are iBUG's: 0-16 jaw, 17-26 brows, 27-35 nose, 36-41 and 42-47 eyes, 48-59 outer and 60-67 inner lip.
    Raises `MissingModelError` when dlib or the model file is not installed.
    """
    return _dlib().shape_predictor(str(model_path(LANDMARKS_FILE)))


@functools.cache
def face_recognition_network() -> Any:
    """dlib's ResNet: `compute_face_descriptor` takes uint8 [150, 150, 3] (or a list of them), gives 128 numbers each.

    Raises `MissingModelError` when dlib or the model file is not installed.
    """
    return _dlib().face_recognition_model_v1(str(model_path(RECOGNITION_FILE)))


def rectangle(left: int, top: int, right: int, bottom: int) -> Any:
    """A `dlib.rectangle` in pixels, all four edges inside it. Raises `MissingModelError` when dlib is not installed."""
    return _dlib().rectangle(left, top, right, bottom)


def model_path(name: str) -> Path:
    """Where the model file `name` lies in the installed package. Raises `MissingModelError` when it is absent."""
    spec = importlib.util.find_spec(MODELS_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / "models" / name
        if path.is_file():
            return path
    reason = f"is not in {folders[0]}" if folders else "is missing, the package is not installed"
    raise MissingModelError(f"{name} of {MODELS_PACKAGE} {reason}: pip install face-recognition-models")


def _dlib() -> Any:
    try:
        import dlib
    except ImportError as error:
        raise MissingModelError(f"finding faces needs dlib ({error}): pip install dlib-bin") from error
    return dlib
