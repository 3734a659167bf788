"""The models lie in `fedtalk_ray.media`; they are tested here beside what reads faces with them."""

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.errors import UserError
from fedtalk_ray.media import dlib_models


def test_models_load_once_and_give_68_points() -> None:
    model = dlib_models.shape_predictor_68()
    assert model is dlib_models.shape_predictor_68()
    found = model(np.zeros((64, 64, 3), np.uint8), dlib_models.rectangle(10, 12, 49, 51))
    assert found.num_parts == 68
    assert (found.rect.left(), found.rect.top(), found.rect.right(), found.rect.bottom()) == (10, 12, 49, 51)


def test_detector_sees_no_face_in_a_plain_picture() -> None:
    assert len(dlib_models.face_detector()(np.full((120, 120, 3), 90, np.uint8))) == 0


def test_the_models_package_is_never_imported() -> None:
    """Its __init__ needs pkg_resources, so importing it would fail beside a new setuptools."""
    code = (
        "import sys; from fedtalk_ray.media import dlib_models; dlib_models.shape_predictor_68(); "
        "print('face_recognition_models' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_absent_package_and_absent_file_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(dlib_models.MissingModelError, match=r"other\.dat .* is not in .*pip install face-recognition"):
        dlib_models.model_path("other.dat")
    spec = ModuleSpec(dlib_models.MODELS_PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.dat").write_bytes(b"x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert dlib_models.model_path("mine.dat") == tmp_path / "models" / "mine.dat"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        dlib_models.MissingModelError, match="not installed: pip install face-recognition-models"
    ) as seen:
        dlib_models.model_path(dlib_models.LANDMARKS_FILE)
    assert isinstance(seen.value, UserError)


def test_absent_dlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    dlib_models.face_detector.cache_clear()
    with pytest.raises(dlib_models.MissingModelError, match="pip install dlib-bin"):
        dlib_models.face_detector()
