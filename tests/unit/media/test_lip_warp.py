"""Faces bent by the points of their mouths: what stands still, what goes where, and what is refused."""

import numpy as np
import pytest

from fedtalk_ray.media.lip_warp import warp_lips

SIDE = 144


def test_a_lower_lip_goes_where_it_is_sent_and_eyes_stay(face_points: np.ndarray) -> None:
    at = face_points[57]  # the middle of the lower lip's outer edge
    ticks = (np.arange(SIDE) + 0.5) / SIDE
    spot = 190 * np.exp(-((ticks[None] - at[0]) ** 2 + (ticks[:, None] - at[1]) ** 2) / (2 * 0.01**2))
    face = np.repeat(spot.round().astype(np.uint8)[..., None], 3, axis=-1)
    face[:64] = 3 * np.arange(64)[:, None, None]  # brows and eyes lie in rows 40 to 57
    moves = np.zeros((3, 68, 2))
    # The lower lip and the chin below it go down together, a little and by twice as much.
    moves[1, [*range(5, 12), *range(55, 60), 65, 66, 67], 1] = 0.03
    moves[2] = 2 * moves[1]
    for frame, way in zip(warp_lips(face, face_points, moves), (0.0, 0.03, 0.06), strict=True):
        light = frame[SIDE // 2 :, :, 0].astype(float)
        found = light.sum(0) @ ticks, light.sum(1) @ ticks[SIDE // 2 :]
        # Half a pixel is 0.0035: the spline passes points by a little.
        assert np.array(found) / light.sum() == pytest.approx((at[0], at[1] + way), abs=0.0035)
        assert np.abs(frame[40:57, 36:108].astype(int) - face[40:57, 36:108]).mean() < 1
