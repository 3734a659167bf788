import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fedtalk_ray.evaluation import metrics
from fedtalk_ray.evaluation.perceptual import (
    FRAME_STEP,
    ST_LPIPS,
    PerceptualDistance,
    _load_st_lpips,
    load_perceptual,
)
from fedtalk_ray.media.dlib_models import MissingModelError
from fedtalk_ray.model.st_lpips import UNUSED_IMPORTS


def test_every_fifth_frame_scaled_to_one_is_compared() -> None:
    """Levels 0 and 255 are -1 and 1: 2 apart in frames 0 and 5, equal in frame 10; what lies between is not seen."""
    distance = PerceptualDistance("l1", lambda a, b: (a - b).abs().mean())
    a, b = np.zeros((11, 8, 8, 3), np.uint8), np.full((11, 8, 8, 3), 77, np.uint8)
    b[0], b[5], b[10] = 255, 255, 0
    assert FRAME_STEP == 5
    assert distance(a, b) == pytest.approx(4 / 3)
    assert distance(a, a) == 0
    with pytest.raises(ValueError, match=r"got \[11, 8, 8, 3\] and \[10, 8, 8, 3\]"):
        distance(a, b[:10])


def picture() -> Image.Image:
    y, x = np.mgrid[:64, :64] / 64
    waves = np.stack([np.sin(20 * x + 3 * y), np.sin(30 * y), np.cos(15 * (x + y))], axis=-1)
    return Image.fromarray((128 + 100 * waves).astype(np.uint8))


def test_st_lpips_sees_blur_and_forgives_a_shift() -> None:
    """What its paper is about: a shift by one pixel changes the pixels more than a blur does, and looks more alike."""
    distance = _load_st_lpips()
    if distance is None:
        pytest.skip("stlpips-pytorch is not installed")
    assert distance.name == ST_LPIPS
    original, *blurred = (
        np.array(picture().filter(ImageFilter.GaussianBlur(radius)))[None] for radius in (0, 0.7, 1.5, 3)
    )
    assert distance(original, original) == pytest.approx(0, abs=1e-6)
    near, further, far = (distance(original, other) for other in blurred)
    assert 0.001 < near < further < far < 1
    shifted = np.roll(original, 1, axis=2)
    assert metrics.psnr(original, shifted) < metrics.psnr(original, blurred[1])
    assert distance(original, shifted) < further / 2


def test_stand_ins_for_what_is_not_installed_are_gone_again() -> None:
    if _load_st_lpips() is None:
        pytest.skip("stlpips-pytorch is not installed")
    for name in UNUSED_IMPORTS:
        assert name not in sys.modules or sys.modules[name].__spec__ is not None


def test_what_could_be_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingModelError, match="pip install stlpips-pytorch"):
        load_perceptual()
