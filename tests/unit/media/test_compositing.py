"""A patch put back: nothing changes outside the mask, what is inside lies where it should, in the same light."""

import numpy as np
import pytest

from fedtalk_ray.media.compositing import light_between, mask_of, paste
from fedtalk_ray.media.face_template import LEFT_EYE, MOUTH_CENTRE, RIGHT_EYE


def placed(side: float, x: float, y: float, angle: float = 0.0) -> np.ndarray:
    """From template fractions to pixels: a face of `side` pixels whose top left corner is at (x, y)."""
    cos, sin = side * np.cos(angle), side * np.sin(angle)
    return np.array([[cos, -sin, x], [sin, cos, y]])


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("side", [33, 64, 255])
def test_the_mask_shows_the_mouth_and_hides_eyes_and_edges(side: int) -> None:
    mask = mask_of(side)

    def at(place: tuple[float, float]) -> float:
        return float(mask[int(place[1] * side), int(place[0] * side)])

    assert at(MOUTH_CENTRE) == 1 and at((0.5, 0.9)) > 0.5
    assert at(LEFT_EYE) == at(RIGHT_EYE) == 0
    assert not mask[0].any() and not mask[-1].any() and not mask[:, 0].any() and not mask[:, -1].any()
    np.testing.assert_allclose(mask, mask[:, ::-1], atol=1e-6)


def test_a_patch_lies_where_the_transform_says() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    patch = np.zeros((64, 64, 3), np.float32)
    spot = (int(MOUTH_CENTRE[1] * 64), int(MOUTH_CENTRE[0] * 64))
    patch[spot[0] - 1 : spot[0] + 2, spot[1] - 1 : spot[1] + 2] = 250
    transform = placed(64, 12, 20, 0.2)
    made = paste(picture, patch, transform, mask_of(64)).astype(float).sum(-1)
    y, x = (np.indices(made.shape) + 0.5).reshape(2, -1) @ made.ravel() / made.sum()
    np.testing.assert_allclose((x, y), transform @ ((spot[1] + 0.5) / 64, (spot[0] + 0.5) / 64, 1), atol=0.3)


def test_a_patch_takes_over_the_light_of_its_surroundings() -> None:
    mask = mask_of(96)
    patch = np.full((96, 96, 3), 100.0, np.float32)
    slope = np.linspace(-30, 30, 96)[None, :, None] + np.array([10.0, 0.0, -10.0])
    matched = patch + light_between(patch + slope, patch, mask)
    border = (mask > 0.05) & (mask < 0.5)
    assert np.abs(matched - patch - slope)[border].mean() < 6 < np.abs(slope * np.ones((96, 1, 1)))[border].mean()
    assert np.abs(light_between(patch, patch, mask)).max() < 1e-4
