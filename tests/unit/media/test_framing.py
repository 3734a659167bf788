"""MuseTalk's crop by hand, and crops of another framing brought to the aligned one."""

import numpy as np
import pytest

from fedtalk_ray.media.faces import similarity_transforms, warp
from fedtalk_ray.media.framing import MUSETALK, aligned_crops, in_crop, musetalk_boxes, to_aligned


@pytest.fixture
def landmarks() -> np.ndarray:
    """A face's 68 points in a picture: cheeks at 60 and 180, chin at 220, the bridge's third point at 130."""
    rng = np.random.default_rng(0)
    points = rng.uniform((90, 110), (150, 190), (68, 2))
    points[0], points[16], points[8] = (60, 120), (180, 118), (121, 220)
    points[36:42] = rng.normal((95, 105), 2, (6, 2))
    points[42:48] = rng.normal((145, 105), 2, (6, 2))
    points[27:31, 0] = 120
    points[27:31, 1] = (102, 115, 130, 142)
    points[29] = (120, 130)
    return points


def test_musetalks_box_by_hand(landmarks: np.ndarray) -> None:
    """Published: x from the least to the largest point; up from point 29 as far as the chin lies below it, and ten
    pixels more below the chin."""
    expected = [60, 130 - (220 - 130), 180, 220 + 10]
    assert musetalk_boxes(landmarks[None]).tolist() == [expected]


def test_a_crop_shows_the_box_each_side_stretched_and_nothing_turned(landmarks: np.ndarray) -> None:
    (transform,) = MUSETALK.transforms(landmarks[None])
    left, top, right, bottom = musetalk_boxes(landmarks[None])[0]
    np.testing.assert_allclose(transform @ (0, 0, 1), (left, top))
    np.testing.assert_allclose(transform @ (1, 1, 1), (right, bottom))
    np.testing.assert_allclose(transform @ (1, 0, 1), (right, top))
    # Half the height is the middle of the box: what MuseTalk hides begins there.
    assert (transform @ (0, 0.5, 1))[1] == pytest.approx((top + bottom) / 2)


def test_only_the_lower_half_is_put_back_and_its_border_is_soft() -> None:
    for side in (64, 255):
        mask = MUSETALK.mask(side)
        assert mask.shape == (side, side) and mask.dtype == np.float32
        assert not mask[: side // 2].any() and mask.max() == 1
        # The mouth, which lies between nose and chin.
        assert (mask[int(0.68 * side) : int(0.88 * side), int(0.3 * side) : int(0.7 * side)] == 1).all()
        assert not (mask[:, 0].any() or mask[:, -1].any() or mask[-1].any())
        assert np.abs(np.diff(mask[: int(0.97 * side)], axis=1)).max() < 0.5


def test_crops_become_aligned_ones(landmarks: np.ndarray) -> None:
    """Of one picture, once cut out aligned at once, and once out of its MuseTalk crop: alike where that shows it."""
    y, x = np.mgrid[:260, :240]
    picture = np.stack([120 + 60 * np.sin(x / 9), 120 + 60 * np.sin(y / 11), (x + y) / 2.2], axis=-1).astype(np.uint8)
    side = 200
    (own,) = places = MUSETALK.transforms(landmarks[None])
    crop = warp(picture, own, side, 1)
    maps = to_aligned(in_crop(landmarks[None], places), places)
    (direct,) = similarity_transforms(landmarks[None])
    # The composed map, by hand: template -> crop -> picture is the aligned one.
    corners = np.array([(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)], float)
    through = np.stack([own @ (*(maps[0] @ corner), 1) for corner in corners])
    np.testing.assert_allclose(through, corners @ direct.T, atol=1e-3)
    (made,) = aligned_crops(crop[None], maps)
    true = warp(picture, direct, side, 1)
    shown = np.stack(np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2), -1)
    place = np.einsum("ij,yxj->yxi", maps[0, :, :2], shown) + maps[0, :, 2]
    inside = ((place > 0.02) & (place < 0.98)).all(-1)
    assert inside.mean() > 0.3
    assert np.abs(made.astype(int) - true)[inside].mean() < 3
