"""Lower faces bent to the shape of their lips: beside whole crops that are bent, and what latents say of it."""

import numpy as np
import pytest

from fedtalk_ray.media.face_template import region_edges
from fedtalk_ray.media.lip_warp import moves_of_face, warp_lips
from fedtalk_ray.model.autoencoder import frames_to_pixels, pixels_to_frames
from fedtalk_ray.model.bending import Bends, bend, lower_flow

SIDE = 144


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """A smooth picture uint8 [1, S, S, 3]."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = [np.sin(9 * x + 4 * y), np.cos(7 * y - 5 * x), np.sin(8 * x) * np.cos(9 * y)]
    return (128 + 90 * np.stack(waves, axis=-1)[None]).astype(np.uint8)


@pytest.fixture(scope="module")
def opening() -> np.ndarray:
    """How the mouth's points go in three frames: not at all, and the lower lip down by 0.02 and 0.05."""
    moves = np.zeros((3, 20, 2))
    lower = [7, 8, 9, 10, 11, 17, 18, 19]
    moves[1, lower, 1], moves[2, lower, 1] = 0.02, 0.05
    return moves


def test_a_lower_face_is_bent_as_the_whole_crop_is(face: np.ndarray, face_points: np.ndarray, opening) -> None:
    left, top, right, bottom = region_edges(SIDE, "lower face")
    lower = frames_to_pixels(face)[:, :, top:bottom, left:right]
    made = pixels_to_frames(bend(lower, Bends(lower_flow(face_points, opening))))
    expected = warp_lips(face[0], face_points, moves_of_face(opening))[:, top:bottom, left:right]
    assert np.array_equal(made[0], expected[0])
    # At its edges a lower face knows nothing of what lies beyond, and the spline is worked out at other places.
    apart = np.abs(made.astype(int) - expected)[:, 4:-4, 4:-4]
    assert apart.mean() < 0.2 and apart.max() <= 6
    assert np.abs(made[2].astype(int) - made[0]).mean() > 2, "and it is bent"
