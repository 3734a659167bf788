import math

import numpy as np
import pytest

from fedtalk_ray.evaluation import metrics
from fedtalk_ray.media.compositing import mask_of
from fedtalk_ray.media.face_template import MOUTH_BOX


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def flat(*levels: int, side: int = 16) -> np.ndarray:
    """One plain grey frame a level: [T, side, side, 3]."""
    return np.stack([np.full((side, side, 3), level, np.uint8) for level in levels])


def test_psnr_of_a_constant_offset_and_of_equal_clips() -> None:
    """Uniform rounding error on [-1/2, 1/2] has variance 1/12: 10 log10(12 * 255^2) = 58.92 dB."""
    a = noise((3, 16, 20, 3)) // 2
    assert metrics.psnr(a, a + 10) == pytest.approx(20 * math.log10(255 / 10), abs=1e-4)
    assert metrics.psnr(a, a) == pytest.approx(58.9227, abs=1e-4)
    mean_of_frames = (20 * math.log10(255) + 20 * math.log10(2.55)) / 2
    assert metrics.psnr(flat(100, 100), flat(101, 200)) == pytest.approx(mean_of_frames, abs=1e-4)


def test_mouth_psnr_sees_the_mouth_and_nothing_else() -> None:
    side = 50
    left, top, right, bottom = (round(edge * side) for edge in MOUTH_BOX)
    a = flat(100, 100, side=side)
    outside = a + 50
    outside[:, top:bottom, left:right] = 100
    inside = a.copy()
    inside[:, top:bottom, left:right] = 105
    assert metrics.mouth_psnr(a, outside) == pytest.approx(metrics.PSNR_CEILING)
    assert metrics.mouth_psnr(a, inside) == pytest.approx(20 * math.log10(255 / 5), abs=1e-4)
    area = (right - left) * (bottom - top) / side**2
    assert metrics.psnr(a, inside) == pytest.approx(20 * math.log10(255 / 5) - 10 * math.log10(area), abs=1e-4)


def test_ssim_of_plain_frames_by_its_formula() -> None:
    """Without variance SSIM is (2 m n + c1) / (m^2 + n^2 + c1), c1 = 0.01^2."""
    levels = [10 * index for index in range(17)]
    c1 = 0.01**2
    pairs = [(level / 255, (level + 60) / 255) for level in levels]
    expected = np.mean([(2 * m * n + c1) / (m * m + n * n + c1) for m, n in pairs])
    assert metrics.ssim(flat(*levels), flat(*[level + 60 for level in levels])) == pytest.approx(expected, abs=5e-4)
    assert metrics.ssim(noise((2, 16, 16, 3)), noise((2, 16, 16, 3))) == pytest.approx(1.0, abs=1e-6)


def test_a_seam_is_what_is_steeper_across_the_border_than_the_truth() -> None:
    """Brightness that follows the mask is as steep as the mask times what it rises by; along the border it may vary."""
    side = 96
    mask = mask_of(side)[None, :, :, None]
    soft, steep = (np.repeat((20 + rise * mask).round().astype(np.uint8), 3, -1) for rise in (60, 180))
    assert metrics.seam_ratio(steep, soft) == pytest.approx(3, rel=0.03)
    assert metrics.seam_ratio(soft, soft) == 1 and metrics.seam_ratio(soft + 70, soft) == 1
    # A row of pixels that crosses no border changes nothing.
    far = soft.copy()
    far[:, :8] = noise((1, 8, side, 3))
    assert metrics.seam_ratio(far, soft) == 1
    assert metrics.seam_ratio(flat(3, 3), flat(9, 9)) == 1 and metrics.seam_ratio(soft, flat(9, side=side)) == math.inf


def test_sharpness_is_the_mouths_alone_and_of_a_blank_it_is_one_or_endless() -> None:
    side = 50
    left, top, right, bottom = (round(edge * side) for edge in MOUTH_BOX)
    truth = noise((2, side, side, 3))
    elsewhere = noise((2, side, side, 3), seed=1)
    elsewhere[:, top - 1 : bottom + 1, left - 1 : right + 1] = truth[:, top - 1 : bottom + 1, left - 1 : right + 1]
    assert metrics.sharpness_ratio(elsewhere, truth) == pytest.approx(1)
    # Columns of 100 + d and 100 in turn have a Laplacian of 2d: at twice the contrast four times the energy.
    weak, strong = flat(100, 100), flat(100, 100)
    weak[:, :, ::2], strong[:, :, ::2] = 110, 120
    assert metrics.sharpness_ratio(strong, weak) == pytest.approx(4)
    assert metrics.sharpness_ratio(flat(3, 3), flat(9, 9)) == 1
    assert metrics.sharpness_ratio(noise((2, 16, 16, 3)), flat(9, 9)) == math.inf
    with pytest.raises(ValueError, match="known in square crops only; these frames are 20x16"):
        metrics.sharpness_ratio(noise((2, 16, 20, 3)), noise((2, 16, 20, 3)))


def test_jitter_of_a_ramp_and_its_ratio() -> None:
    assert metrics.temporal_jitter(flat(0, 5, 10, 15)) == pytest.approx(5 / 255)
    assert metrics.temporal_jitter(flat(0, 255, 0)) == 1.0
    assert metrics.jitter_ratio(flat(10, 40, 10), flat(50, 70)) == pytest.approx(1.5)
    assert metrics.jitter_ratio(flat(10, 10), flat(50, 70)) == 0.0
    assert metrics.jitter_ratio(flat(10, 20), flat(50, 50)) == math.inf


def test_correlation_agrees_with_numpy() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 75)).astype(np.float32)
    b += a
    assert metrics.correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
    assert metrics.correlation(a, -3 * a + 1) == pytest.approx(-1.0)


def test_correlation_leaves_out_what_is_not_finite() -> None:
    a = np.array([1.0, np.nan, 2.0, 4.0, 9.0])
    b = np.array([2.0, 50.0, 1.0, np.inf, 5.0])
    assert metrics.correlation(a, b) == pytest.approx(np.corrcoef([1, 2, 9], [2, 1, 5])[0, 1])
    for constant in (np.array([1.0]), np.full(5, 0.1), np.full(5, np.nan)):
        assert (
            metrics.correlation(constant, b[: len(constant)]) == metrics.correlation(b[: len(constant)], constant) == 0
        )


@pytest.mark.parametrize("late", [-4, -1, 0, 3])
def test_best_lag_finds_a_shift(late: int) -> None:
    source = np.random.default_rng(2).normal(size=60)
    a, b = source[10:50], source[10 - late : 50 - late]  # b[t] = a[t - late]
    assert metrics.best_lag(a, b, 5) == (late, pytest.approx(1.0))
    assert metrics.best_lag(a, np.ones(40), 5) == (0, 0.0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: metrics.psnr(flat(1), flat(1, 2)), r"one shape, got \[1, 16, 16, 3\] and \[2, 16, 16, 3\]"),
        (lambda: metrics.psnr(flat(1) / 255, flat(1)), "got float64"),
        (lambda: metrics.ssim(flat(1, side=8), flat(1, side=8)), "11 pixels wide; these frames are 8x8"),
        (lambda: metrics.mouth_psnr(flat(1)[:, :8], flat(1)[:, :8]), "these frames are 16x8"),
        (lambda: metrics.temporal_jitter(flat(1)), "T >= 2"),
        (lambda: metrics.correlation(np.zeros(3), np.zeros(4)), r"\(3,\) and \(4,\)"),
        (lambda: metrics.best_lag(np.zeros(5), np.zeros(5), 4), "max_lag is 4; a series of 5 values allows 0 to 3"),
    ],
)
def test_bad_input_is_named(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
