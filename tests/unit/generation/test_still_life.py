"""A photo that lives: eyes close and open again, the head sways, and neither touches what lies further away."""

from fractions import Fraction

import numpy as np
import pytest

from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.generation.still_life import BLINK_CLOSES, BLINK_EVERY, BLINK_OPENS, SWAY_SHIFT, StillLife
from fedtalk_ray.media.faces import warp
from fedtalk_ray.media.portrait import locate_face


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    picture = np.random.default_rng(0).integers(90, 160, (300, 640, 3), np.uint8)
    picture[60:220, 130:290] = render_clip(2, 0, size=160, seconds=0.04).video.frames[0]
    return picture


@pytest.fixture(scope="module")
def life(picture) -> StillLife:
    place = locate_face(picture)
    return StillLife(place.landmarks, place.transform, picture.shape[:2], Fraction(25))


def test_a_blink_covers_the_eyes_and_nothing_else(picture, life) -> None:
    assert life.blinked(picture, 0.0) is picture
    shut = life.blinked(picture, 1.0)
    changed = np.argwhere((shut != picture).any(-1))
    assert len(changed) > 50
    eyes = life.landmarks[36:48]
    brows = life.landmarks[17:27]
    (top, left), (bottom, right) = changed.min(0), changed.max(0)
    assert top >= brows[:, 1].min() - 3 and bottom <= eyes[:, 1].max() + 4
    assert left >= eyes[:, 0].min() - 12 and right <= eyes[:, 0].max() + 12
    half = (life.blinked(picture, 0.5) != picture).any(-1).sum()
    assert 0 < half < len(changed) * 1.2


def test_blinks_come_every_few_seconds_and_end_open(life) -> None:
    closed = life.closed(25 * 120)
    assert closed[0] == 0 and closed.max() > 0.9 and ((closed >= 0) & (closed <= 1)).all()
    starts = np.flatnonzero((closed[1:] > 0) & (closed[:-1] == 0))
    assert 120 / BLINK_EVERY[1] - 1 <= len(starts) <= 120 / BLINK_EVERY[0] + 1
    assert (closed > 0).mean() < 2 * (BLINK_CLOSES + BLINK_OPENS) / BLINK_EVERY[0]
    np.testing.assert_array_equal(closed[:50], life.closed(50))


def test_sway_begins_as_the_photo_is_and_moves_the_face_with_it(picture, life) -> None:
    same, place = life.swayed(picture, 0, life.transform)
    np.testing.assert_array_equal(same, picture)
    np.testing.assert_allclose(place, life.transform, atol=1e-9)
    moved, place = life.swayed(picture, 60, life.transform)
    step = place @ (0.5, 0.5, 1) - life.transform @ (0.5, 0.5, 1)
    assert 0.2 < np.hypot(*step) < 160 * SWAY_SHIFT * 3
    face = warp(picture, life.transform, 96, 2).astype(float)
    along, behind = (np.abs(warp(moved, where, 96, 2) - face).mean() for where in (place, life.transform))
    assert along < 0.5 * behind and along < 3
    assert (moved[:, 430:] == picture[:, 430:]).all()
