"""Faces bent by the points of their mouths: what stands still, what goes where, and what is refused."""

import re

import numpy as np
import pytest

from fedtalk_ray.media.lip_warp import MOVED_POINTS, warp_lips
from fedtalk_ray.media.lips import MIRRORED, MOUTH_POINTS

SIDE = 144


def points() -> np.ndarray:
    """A face's points, about where an aligned crop has them: jaw, brows, nose, eyes, an ellipse for each lip."""
    jaw = [(0.5 + 0.42 * np.cos(a), 0.5 + 0.5 * np.sin(a)) for a in np.linspace(np.pi, 0, 17)]
    above = [(x, 0.3) for x in np.linspace(0.2, 0.8, 10)]
    nose = [(0.5, y) for y in np.linspace(0.35, 0.5, 4)] + [(x, 0.58) for x in np.linspace(0.43, 0.57, 5)]
    eyes = [(x, 0.38) for x in np.linspace(0.28, 0.72, 12)]
    outer = [(0.5 - 0.14 * np.cos(a), 0.75 - 0.06 * np.sin(a)) for a in np.arange(12) * np.pi / 6]
    inner = [(0.5 - 0.10 * np.cos(a), 0.75 - 0.01 * np.sin(a)) for a in np.arange(8) * np.pi / 4]
    return np.array([*jaw, *above, *nose, *eyes, *outer, *inner])


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


def test_no_move_leaves_every_pixel() -> None:
    rng = np.random.default_rng(0)
    face = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    assert np.array_equal(warp_lips(face, points(), np.zeros((2, 68, 2))), np.stack([face, face]))


def test_a_lower_lip_goes_where_it_is_sent_and_eyes_stay() -> None:
    at = points()
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


def test_left_and_right_are_bent_alike() -> None:
    mirror = np.array([(1 - x, y) for x, y in points()])
    order = np.arange(68)
    order[:17] = order[16::-1]
    order[17:27] = order[26:16:-1]
    order[31:36] = order[35:30:-1]
    order[36:48] = order[47:35:-1]
    order[MOUTH_POINTS] = order[MOUTH_POINTS][MIRRORED]
    face = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    move = np.zeros((68, 2))
    move[MOUTH_POINTS] = np.random.default_rng(2).normal(0, 0.01, (20, 2))
    (made,) = warp_lips(face, points(), move[None])
    (other,) = warp_lips(face[:, ::-1].copy(), mirror[order], (move * (-1, 1))[order][None])
    assert np.abs(made.astype(int) - other[:, ::-1].astype(int)).max() <= 2


def test_points_that_do_not_speak_bend_nothing() -> None:
    face = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    moves = np.full((1, 68, 2), 0.05)
    moves[:, MOVED_POINTS] = 0
    assert np.array_equal(warp_lips(face, points(), moves)[0], face)


def test_other_shapes_are_refused() -> None:
    face = np.zeros((SIDE, SIDE, 3), np.uint8)
    with pytest.raises(ValueError, match=re.escape("a square crop; got float32 [144, 144, 3]")):
        warp_lips(face.astype(np.float32), points(), np.zeros((1, 68, 2)))
    with pytest.raises(ValueError, match=re.escape("got [68, 2], [68, 2]")):
        warp_lips(face, points(), np.zeros((68, 2)))
