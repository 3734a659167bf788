"""Noise: of the distribution and the size that the accountant counts on, and from the system's randomness alone."""

import math
import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from fedtalk_ray.privacy.noise import LARGEST_RATE, client_variance, gaussian, skellam, system_rng
from fedtalk_ray.privacy.protocol import Limits

SYSTEM = 1e-7
"""p values below this fail where the draws are the system's: by chance, once in ten million runs."""


@pytest.mark.parametrize("variance", [0.2, 1.0, 3.0, 40.0])
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


@pytest.mark.parametrize("variance", [0.5, 100.0, 2.7e9, 2 * LARGEST_RATE])
def test_skellam_noise_has_mean_zero_and_the_variance_that_was_asked_for(variance: float) -> None:
    """Up to the largest rate, where numpy's own sampler would begin to be off. 2.7e9: z = 1.3, t = 43 at 2^18."""
    count = 100_000
    drawn = skellam(count, variance, np.random.default_rng(8)).astype(np.float64)
    assert abs(drawn.mean()) < 4.5 * math.sqrt(variance / count)
    # Excess kurtosis 1 / variance.
    assert drawn.var() == pytest.approx(variance, rel=4.5 * math.sqrt((2 + 1 / variance) / count))


def test_sums_of_skellam_noise_are_skellam_noise() -> None:
    """Which is why the clients' parts add up to noise with a proof: 8 of variance 0.5 against one of 4."""
    rng = np.random.default_rng(9)
    parts = sum(skellam(50_000, 0.5, rng) for _ in range(8))
    law = stats.skellam(2, 2)
    inner = np.arange(-7, 8)
    observed = [np.sum(parts == k) for k in inner] + [np.sum(np.abs(parts) > 7)]
    expected = 50_000 * np.array([*law.pmf(inner), 2 * law.sf(7)])
    assert stats.chisquare(observed, expected * 50_000 / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize("beyond", [1.001, 4.0, 2.0**20])
def test_a_rate_at_which_the_sampler_is_wrong_is_refused(beyond: float) -> None:
    with pytest.raises(ValueError, match=r"lower privacy\.scale_bits"):
        skellam(3, 2 * LARGEST_RATE * beyond, np.random.default_rng(0))


@pytest.mark.parametrize(("cohort", "colluders"), [(8, 0), (16, 0), (16, 3), (64, 0), (64, 20), (256, 10)])
def test_any_survivors_that_may_be_opened_carry_enough_noise(cohort: int, colluders: int) -> None:
    """For every dropout count: variance over (z S)^2 of the honest survivors, with none to spare at the minimum."""
    least = Limits().opened(cohort)
    each = client_variance(noise_multiplier=1.3, sensitivity=1000.0, survivors=least, colluders=colluders)
    wanted = 1300.0**2
    totals = [(survivors - colluders) * each for survivors in range(least, cohort + 1)]
    assert totals[0] == pytest.approx(wanted)
    assert all(fewer < more for fewer, more in pairwise(totals))
    assert (least - 1 - colluders) * each < wanted  # one below the minimum would not do


def test_the_price_of_dropouts_that_do_not_happen() -> None:
    """64 clients of whom 43 must survive: sqrt(64 / 43) = 1.22 times the deviation."""
    each = client_variance(noise_multiplier=1.0, sensitivity=1.0, survivors=43)
    assert math.sqrt(64 * each) == pytest.approx(1.22, abs=0.001)


@pytest.mark.parametrize(("survivors", "colluders"), [(8, 8), (8, 9), (0, 0)])
def test_nobody_honest_left_is_refused(survivors: int, colluders: int) -> None:
    with pytest.raises(ValueError, match="leave nobody to add noise"):
        client_variance(noise_multiplier=1.0, sensitivity=1.0, survivors=survivors, colluders=colluders)


@pytest.mark.parametrize("deviation", [0.01, 1.0, 3e5])
def test_gaussian_noise_is_gaussian_with_that_deviation(deviation: float) -> None:
    count = 100_000
    drawn = gaussian(count, deviation)
    assert drawn.shape == (count,) and drawn.dtype == np.float64
    assert stats.kstest(drawn / deviation, "norm").pvalue > SYSTEM
    assert drawn.std() == pytest.approx(deviation, rel=5.5 / math.sqrt(2 * count))
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 5.5 / math.sqrt(count)


def test_no_deviation_is_no_noise() -> None:
    assert gaussian(5, 0.0).tolist() == [0.0] * 5


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


def test_all_256_bits_of_a_generators_seed_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators whose seeds differ in a single bit, wherever it is, draw other numbers."""
    seeds = [bytes(32)] + [(1 << bit).to_bytes(32, "big") for bit in (0, 31, 32, 63, 64, 127, 128, 255)]
    asked = iter(seeds)
    monkeypatch.setattr(os, "urandom", lambda size: next(asked)[:size])
    assert len({int(system_rng().integers(2**63)) for _ in seeds}) == len(seeds)


def test_a_generator_keeps_more_of_its_seed_than_128_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it draws follows from its state: seeds that differ anywhere give states that differ in both halves."""
    states = []
    for bit in range(0, 256, 5):
        monkeypatch.setattr(os, "urandom", lambda size, bit=bit: (1 << bit).to_bytes(32, "big")[:size])
        states.append(system_rng().bit_generator.state["state"])
    assert len({state["state"] for state in states}) == len({state["inc"] for state in states}) == len(states)
    assert max(max(state.values()) for state in states) > 2**126


def test_all_of_the_systems_randomness_counts_for_gaussian_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that kept 32 bits of its seed would repeat itself where only the others differ."""
    drawn = []
    for last in (0, 1):
        monkeypatch.setattr("os.urandom", lambda count, last=last: bytes([last]) + bytes(count - 1))
        drawn.append(gaussian(8, 1.0))
    assert not np.allclose(*drawn)
