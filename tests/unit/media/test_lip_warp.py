"""Faces bent by the points of their mouths: what stands still, what goes where, and what is refused."""

import re

import numpy as np
import pytest

from fedtalk_ray.media.lip_warp import MOVED_POINTS, warp_lips
from fedtalk_ray.media.lips import MIRRORED, MIRRORED_FACE, MOUTH_POINTS

SIDE = 144


def blobs(places: np.ndarray) -> np.ndarray:
    """A grey face uint8 [S, S, 3] with a bright soft dot at each of these places, in fractions."""
    y, x = np.mgrid[:SIDE, :SIDE]
    light = np.full((SIDE, SIDE), 60.0)
    for px, py in places * SIDE - 0.5:
        light += 150 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 1.5**2))
    return np.repeat(light.clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def dot(frame: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The middle of the light within five pixels of a place: (x, y) in fractions."""
    light = frame[..., 0].astype(float) - 60
    y, x = np.mgrid[:SIDE, :SIDE]
    inside = np.hypot(x - near[0] * SIDE + 0.5, y - near[1] * SIDE + 0.5) < 5
    weight = light * inside
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum() / SIDE + 0.5 / SIDE


def test_no_move_leaves_every_pixel(face_points: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    face = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    assert np.array_equal(warp_lips(face, face_points, np.zeros((2, 68, 2))), np.stack([face, face]))


def test_a_lower_lip_goes_where_it_is_sent_and_eyes_stay(face_points: np.ndarray) -> None:
    at = face_points
    lower, eye, brow = 57, 40, 20  # the middle of the lower lip's outer edge
    moves = np.zeros((3, 68, 2))
    # The lower lip and the chin below it go down together, a little and by twice as much.
    moves[1, [*range(5, 12), *range(55, 60), 65, 66, 67], 1] = 0.03
    moves[2] = 2 * moves[1]
    frames = warp_lips(blobs(at[[lower, eye, brow]]), at, moves)
    for frame, way in zip(frames, (0.0, 0.03, 0.06), strict=True):
        # Half a pixel is 0.0035: the spline passes points by a little.
        assert dot(frame, at[lower] + (0, way)) == pytest.approx(at[lower] + (0, way), abs=0.0035)
        for still in (eye, brow):
            assert dot(frame, at[still]) == pytest.approx(at[still], abs=0.001)


def test_left_and_right_are_bent_alike(face_points: np.ndarray) -> None:
    mirror = np.array([(1 - x, y) for x, y in face_points])
    order = np.arange(68)
    order[:17] = order[16::-1]
    order[17:27] = order[26:16:-1]
    order[31:36] = order[35:30:-1]
    # Eyes from corner to corner above, and back below.
    order[36:48] = [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    order[MOUTH_POINTS] = order[MOUTH_POINTS][MIRRORED]
    assert order.tolist() == MIRRORED_FACE
    face = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    move = np.zeros((68, 2))
    move[MOUTH_POINTS] = np.random.default_rng(2).normal(0, 0.01, (20, 2))
    (made,) = warp_lips(face, face_points, move[None])
    (other,) = warp_lips(face[:, ::-1].copy(), mirror[order], (move * (-1, 1))[order][None])
    assert np.abs(made.astype(int) - other[:, ::-1].astype(int)).max() <= 2


def test_points_that_do_not_speak_bend_nothing(face_points: np.ndarray) -> None:
    face = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    moves = np.full((1, 68, 2), 0.05)
    moves[:, MOVED_POINTS] = 0
    assert np.array_equal(warp_lips(face, face_points, moves)[0], face)


def test_other_shapes_are_refused(face_points: np.ndarray) -> None:
    face = np.zeros((SIDE, SIDE, 3), np.uint8)
    with pytest.raises(ValueError, match=re.escape("a square crop; got float32 [144, 144, 3]")):
        warp_lips(face.astype(np.float32), face_points, np.zeros((1, 68, 2)))
    with pytest.raises(ValueError, match=re.escape("got [68, 2], [68, 2]")):
        warp_lips(face, face_points, np.zeros((68, 2)))
