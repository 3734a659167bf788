"""One face through a video: the same person throughout, and nothing where she cannot be followed."""

import numpy as np
import pytest

from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.media import following
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE
from fedtalk_ray.media.faces import FaceFinder, NoFaceError
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
    frames = [scene((heads[0], 10 + 3 * k, 20)) for k in range(31)]
    face = follow_face(frames)
    assert (face.opacity == 1).all() and not len(face.lost())
    for k in (5, 15, 25):
        np.testing.assert_allclose(middle(face.transforms[k]), (10 + 3 * k + 50, 70), atol=4)
        # In the crop her eyes lie where the template has them.
        eyes = face.landmarks[k, 36:42].mean(0), face.landmarks[k, 42:48].mean(0)
        np.testing.assert_allclose(eyes, (LEFT_EYE, RIGHT_EYE), atol=0.03)


def test_where_the_face_is_gone_nothing_is_shown_and_it_fades(heads) -> None:
    here, empty = scene((heads[0], 60, 20)), scene()
    face = follow_face([here] * 31 + [empty] * 40 + [here] * 31)
    lost = face.lost()
    assert 31 <= lost[0] <= 36 and 66 <= lost[-1] <= 75 and (np.diff(lost) == 1).all()
    assert (face.opacity[lost] == 0).all() and face.opacity[0] == face.opacity[-1] == 1
    assert np.isnan(face.landmarks[lost]).all() and np.isnan(face.landmarks).all((1, 2)).sum() == len(lost)
    falls = face.opacity[lost[0] - 5 : lost[0]]
    np.testing.assert_allclose(falls, [1, 0.8, 0.6, 0.4, 0.2])
    assert np.isnan(face.openness[lost]).all() and np.isfinite(np.delete(face.openness, lost)).all()


def test_a_face_that_the_detector_misses_once_is_still_followed(heads, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [scene((heads[0], 60, 20))] * 41
    frames[20] = frames[20].copy()  # not seen at this one, where one looks

    class Blinks(FaceFinder):
        def __call__(self, frame: np.ndarray) -> list:
            return [] if frame is frames[20] else super().__call__(frame)

    monkeypatch.setattr(following, "FaceFinder", Blinks)
    assert (follow_face(frames).opacity == 1).all()


def test_what_the_detector_takes_for_a_face_once_is_not_followed(heads, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [scene((heads[0], 60, 20)) for _ in range(21)]

    class Errs(FaceFinder):
        def __call__(self, frame: np.ndarray) -> list:
            return [*super().__call__(frame), *([(180, 5, 318, 150)] if frame is frames[0] else [])]

    monkeypatch.setattr(following, "FaceFinder", Errs)
    np.testing.assert_allclose(middle(follow_face(frames).transforms[0]), (110, 70), atol=4)
    with pytest.raises(NoFaceError, match="no face could be followed in 6 frames"):
        frames[0] = scene()
        follow_face([frames[0], *[scene()] * 5])


@pytest.mark.parametrize("length", [3, 7, 12])
def test_nothing_is_painted_on_pictures_without_a_face(heads, length: int) -> None:
    """A cutaway, shorter than what the detector may miss."""
    here, away = scene((heads[0], 60, 20)), scene()
    face = follow_face([here] * 21 + [away] * length + [here] * 21)
    assert set(range(21, 21 + length)) <= set(face.lost()) and len(face.lost()) < length + 10
    assert face.opacity[0] == face.opacity[-1] == 1


def test_who_comes_back_is_followed_again_and_nobody_else(heads) -> None:
    """The second head takes the place of the first, by a cut and after a while; the first comes back elsewhere."""
    first, second = scene((heads[0], 20, 20)), scene((heads[1], 20, 20))
    back = scene((heads[0], 200, 30))
    for between in ([], [scene()] * 16):
        frames = [first] * 21 + between + [second] * 21 + between + [back] * 21
        face = follow_face(frames)
        there = [number for number in range(len(frames)) if number not in set(face.lost())]
        mine = [k for k, frame in enumerate(frames) if frame is first or frame is back]
        assert set(there) <= set(mine) and len(there) > len(mine) - 9
        np.testing.assert_allclose(middle(face.transforms[-1]), (250, 80), atol=5)


@pytest.mark.parametrize("rate", [10, 60])
def test_a_look_comes_five_times_a_second_at_any_rate(heads, rate: int) -> None:
    """A head that sways 25 pixels each way, twice in three seconds."""
    xs = [round(110 + 25 * np.sin(2 * np.pi * k / rate / 1.5)) for k in range(3 * rate)]
    face = follow_face([scene((heads[0], x, 20)) for x in xs], rate=rate)
    off = [abs(middle(transform)[0] - x - 50) for transform, x in zip(face.transforms, xs, strict=True)]
    assert not len(face.lost()) and np.mean(off) < 5


@pytest.mark.parametrize(("face", "x"), [(1, 60), (2, 235), (None, 235)])
def test_of_two_faces_the_chosen_one_is_kept(heads, face: int | None, x: int) -> None:
    """By default the largest, here the right one. While she is hidden nobody else speaks in her place."""
    left = (heads[0], 10, 30)
    right = (render_clip(9, 0, size=130, seconds=0.04).video.frames[0], 170, 20)
    both, other = scene(left, right), scene(left if x == 235 else right)
    found = follow_face([both] * 16 + [other] * 16 + [both] * 16, face)
    middles = [middle(transform)[0] for transform in found.transforms if not np.isnan(transform).any()]
    np.testing.assert_allclose(middles, x, atol=8)


def test_who_is_not_there_is_refused(heads) -> None:
    with pytest.raises(NoFaceError, match="no face was found in 3 sampled frames"):
        follow_face([scene()] * 11)
    with pytest.raises(NoFaceError, match="--face 3: at most 1 face can be seen at once"):
        follow_face([scene((heads[0], 60, 20))] * 6, face=3)
