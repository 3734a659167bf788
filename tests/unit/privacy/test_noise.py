"""Noise: of the distribution and the size that the accountant counts on, and from the system's randomness alone."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from fedtalk_ray.privacy.noise import LARGEST_RATE, client_variance, gaussian, skellam, system_rng
from fedtalk_ray.privacy.protocol import Limits

SYSTEM = 1e-7
"""p values below this fail where the draws are the system's: by chance, once in ten million runs."""


@pytest.mark.parametrize("variance", [0.2, 3.0, 40.0])
def test_skellam_noise_has_skellams_distribution(variance: float) -> None:
    """Chi-squared over all values that are expected often enough, the tails together."""
    count = 100_000
    drawn = skellam(count, variance, np.random.default_rng(7))
    law = stats.skellam(variance / 2, variance / 2)
    edge = max(k for k in range(100) if law.pmf(k) * count >= 20)
    inner = np.arange(-edge, edge + 1)
    observed = [np.sum(drawn == k) for k in inner] + [np.sum(drawn < -edge), np.sum(drawn > edge)]
    expected = count * np.array([*law.pmf(inner), law.cdf(-edge - 1), law.sf(edge)])
    assert drawn.dtype == np.int64
    assert stats.chisquare(observed, expected * count / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize("variance", [0.5, 2.7e9, 2 * LARGEST_RATE])
def test_skellam_noise_has_mean_zero_and_the_variance_that_was_asked_for(variance: float) -> None:
    """Up to the largest rate, where numpy's own sampler would begin to be off. 2.7e9: z = 1.3, t = 43 at 2^18."""
    count = 100_000
    drawn = skellam(count, variance, np.random.default_rng(8)).astype(np.float64)
    assert abs(drawn.mean()) < 4.5 * math.sqrt(variance / count)
    assert drawn.var() == pytest.approx(variance, rel=4.5 * math.sqrt((2 + 1 / variance) / count))


def test_a_rate_at_which_the_sampler_is_wrong_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lower privacy\.scale_bits"):
        skellam(3, 2 * LARGEST_RATE * 1.001, np.random.default_rng(0))


@pytest.mark.parametrize(("cohort", "colluders"), [(8, 0), (16, 3), (64, 20), (256, 10)])
def test_any_survivors_that_may_be_opened_carry_enough_noise(cohort: int, colluders: int) -> None:
    """For every dropout count: variance over (z S)^2 of the honest survivors, with none to spare at the minimum."""
    least = Limits().opened(cohort)
    each = client_variance(noise_multiplier=1.3, sensitivity=1000.0, survivors=least, colluders=colluders)
    wanted = 1300.0**2
    totals = [(survivors - colluders) * each for survivors in range(least, cohort + 1)]
    assert totals[0] == pytest.approx(wanted)
    assert all(fewer < more for fewer, more in pairwise(totals))
    assert (least - 1 - colluders) * each < wanted  # one below the minimum would not do


@pytest.mark.parametrize(("survivors", "colluders"), [(8, 8), (8, 9), (0, 0)])
def test_nobody_honest_left_is_refused(survivors: int, colluders: int) -> None:
    with pytest.raises(ValueError, match="leave nobody to add noise"):
        client_variance(noise_multiplier=1.0, sensitivity=1.0, survivors=survivors, colluders=colluders)


@pytest.mark.parametrize("deviation", [0.01, 3e5])
def test_gaussian_noise_is_gaussian_with_that_deviation(deviation: float) -> None:
    count = 100_000
    drawn = gaussian(count, deviation)
    assert drawn.shape == (count,) and drawn.dtype == np.float64
    assert stats.kstest(drawn / deviation, "norm").pvalue > SYSTEM
    assert drawn.std() == pytest.approx(deviation, rel=5.5 / math.sqrt(2 * count))
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 5.5 / math.sqrt(count)


def test_no_global_seed_decides_the_noise_and_none_is_touched() -> None:
    """A seed that a server knows would let it take the noise off again."""
    drawn = []
    for _ in range(3):
        np.random.seed(0)
        torch.manual_seed(0)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        drawn.append((tuple(gaussian(8, 1.0)), tuple(skellam(8, 1e6, system_rng()))))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
    for kind in range(2):
        assert len({both[kind] for both in drawn}) == 3
