"""One face through a video: the same person throughout, and nothing where she cannot be followed."""

import numpy as np
import pytest

from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE
from fedtalk_ray.media.faces import NoFaceError
from fedtalk_ray.media.following import follow_face

SIDE = 100


@pytest.fixture(scope="module")
def heads() -> list[np.ndarray]:
    return [render_clip(identity, 0, size=SIDE, seconds=0.04).video.frames[0] for identity in (5, 9)]


def scene(*places: tuple[np.ndarray, int, int] | None, width: int = 320) -> np.ndarray:
    """A grey picture with heads, each (head, x, y)."""
    picture = np.full((160, width, 3), 128, np.uint8)
    for head, x, y in filter(None, places):
        shown = head[:, max(0, -x) : max(0, width - x)]
        picture[y : y + len(shown), max(0, x) : max(0, x) + shown.shape[1]] = shown
    return picture


def middle(transform: np.ndarray) -> np.ndarray:
    return transform @ (0.5, 0.5, 1)


def test_a_face_that_moves_is_followed_where_it_is(heads) -> None:
    frames = [scene((heads[0], 10 + 3 * k, 20)) for k in range(21)]
    face = follow_face(frames)
    assert (face.opacity == 1).all() and not len(face.lost())
    for k in (5, 15):
        np.testing.assert_allclose(middle(face.transforms[k]), (10 + 3 * k + 50, 70), atol=4)
        # In the crop her eyes lie where the template has them.
        eyes = face.landmarks[k, 36:42].mean(0), face.landmarks[k, 42:48].mean(0)
        np.testing.assert_allclose(eyes, (LEFT_EYE, RIGHT_EYE), atol=0.03)


def test_where_the_face_is_gone_nothing_is_shown_and_it_fades(heads) -> None:
    here, empty = scene((heads[0], 60, 20)), scene()
    face = follow_face([here] * 16 + [empty] * 20 + [here] * 16)
    lost = face.lost()
    assert 16 <= lost[0] <= 21 and 31 <= lost[-1] <= 40 and (np.diff(lost) == 1).all()
    assert (face.opacity[lost] == 0).all() and face.opacity[0] == face.opacity[-1] == 1
    assert np.isnan(face.landmarks[lost]).all() and np.isnan(face.landmarks).all((1, 2)).sum() == len(lost)
    falls = face.opacity[lost[0] - 5 : lost[0]]
    np.testing.assert_allclose(falls, [1, 0.8, 0.6, 0.4, 0.2])
    assert np.isnan(face.openness[lost]).all() and np.isfinite(np.delete(face.openness, lost)).all()


def test_who_comes_back_is_followed_again_and_nobody_else(heads) -> None:
    """The second head takes the place of the first by a cut; after a while the first comes back elsewhere."""
    first, second = scene((heads[0], 20, 20)), scene((heads[1], 20, 20))
    back = scene((heads[0], 200, 30))
    frames = [first] * 16 + [second] * 16 + [scene()] * 11 + [back] * 16
    face = follow_face(frames)
    there = [number for number in range(len(frames)) if number not in set(face.lost())]
    mine = [k for k, frame in enumerate(frames) if frame is first or frame is back]
    assert set(there) <= set(mine) and len(there) > len(mine) - 9
    np.testing.assert_allclose(middle(face.transforms[-1]), (250, 80), atol=5)


@pytest.mark.parametrize(("face", "x"), [(1, 60), (None, 235)])
def test_of_two_faces_the_chosen_one_is_kept(heads, face: int | None, x: int) -> None:
    """By default the largest, here the right one. While she is hidden nobody else speaks in her place."""
    left = (heads[0], 10, 30)
    right = (render_clip(9, 0, size=130, seconds=0.04).video.frames[0], 170, 20)
    both, other = scene(left, right), scene(left if x == 235 else right)
    found = follow_face([both] * 11 + [other] * 11 + [both] * 11, face)
    middles = [middle(transform)[0] for transform in found.transforms if not np.isnan(transform).any()]
    np.testing.assert_allclose(middles, x, atol=8)


def test_who_is_not_there_is_refused(heads) -> None:
    with pytest.raises(NoFaceError, match="no face was found in 3 sampled frames"):
        follow_face([scene()] * 11)
    with pytest.raises(NoFaceError, match="--face 3: at most 1 face can be seen at once"):
        follow_face([scene((heads[0], 60, 20))] * 6, face=3)
