"""Lip shapes: the aperture as it is measured, even variations around a clip's mean, one unit for all clips."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedtalk_ray.training import train_speech_motion
from fedtalk_ray.training.train_speech_motion import MIRRORED, lip_shapes


def mouth(opening: np.ndarray, crooked: np.ndarray, shift: float) -> np.ndarray:
    """68 landmarks of each frame: eyes 0.4 apart, an ellipse of lips that opens, and moves to one side."""
    points = np.zeros((len(opening), 68, 2))
    points[:, 36:42], points[:, 42:48] = (0.3, 0.3), (0.7, 0.3)
    outer = np.pi - np.arange(12) * np.pi / 6
    inner = np.pi - np.arange(8) * np.pi / 4
    for index, (gap, side) in enumerate(zip(opening, crooked, strict=True)):
        for angles, part, width in ((outer, slice(48, 60), 0.12), (inner, slice(60, 68), 0.08)):
            points[index, part, 0] = 0.5 + shift + side + width * np.cos(angles)
            points[index, part, 1] = 0.7 - gap * np.sin(angles)
    return points


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch):
    """Lip shapes of two clips whose landmarks are `mouth`s; the first number of a frame names its clip."""

    def measure(count: int = 3, crooked: float = 0.0) -> tuple[list[np.ndarray], list[np.ndarray]]:
        rng = np.random.default_rng(0)
        opening = [rng.uniform(0, 0.1, 30), rng.uniform(0.02, 0.05, 20)]
        found = {clip: mouth(gap, rng.normal(0, crooked, len(gap)), 0.05 * clip) for clip, gap in enumerate(opening)}
        monkeypatch.setattr(train_speech_motion, "face_landmarks", lambda frames: found[int(frames[0])])
        pieces = [SimpleNamespace(frames=np.full(len(gap), clip)) for clip, gap in enumerate(opening)]
        return opening, lip_shapes(pieces, count)

    return measure


def test_the_first_number_is_the_aperture_in_standard_deviations(measured) -> None:
    opening, shapes = measured()
    raw = np.concatenate(opening)
    for gap, shape in zip(opening, shapes, strict=True):
        assert shape.shape == (len(gap), 3) and shape.dtype == np.float32
        np.testing.assert_allclose(shape[:, 0], (gap - raw.mean()) / raw.std(), atol=1e-4)


def test_the_second_is_the_largest_variation_around_each_clips_own_mean(measured) -> None:
    opening, shapes = measured()
    for gap, shape in zip(opening, shapes, strict=True):
        assert abs(np.corrcoef(gap, shape[:, 1])[0, 1]) == pytest.approx(1, abs=1e-6)
        assert shape[:, 1].mean() == pytest.approx(0, abs=1e-5), "where the mouth sits is taken out"


def test_what_is_not_even_left_and_right_does_not_show(measured) -> None:
    """A mirrored picture has the same lip shape: moving to one side is no shape."""
    for straight, moved in zip(measured()[1], measured(crooked=0.02)[1], strict=True):
        np.testing.assert_allclose(np.abs(moved), np.abs(straight), atol=1e-4)


def test_the_mirror_maps_points_onto_points_of_the_other_side() -> None:
    points = mouth(np.array([0.05]), np.array([0.0]), 0.0)[0, 48:68] - (0.5, 0.7)
    np.testing.assert_allclose(points[MIRRORED] * (-1, 1), points, atol=1e-12)
    assert [MIRRORED[index] for index in MIRRORED] == list(range(20))
