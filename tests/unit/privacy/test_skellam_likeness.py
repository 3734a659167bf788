"""How far Skellam noise is from Gaussian noise, held against exact probabilities, and what it costs, exactly."""

import math

import numpy as np
import pytest
from scipy import special

from fedtalk_ray.privacy.accounting import Noise, Rounds, epsilon, epsilon_bound
from fedtalk_ray.privacy.skellam_likeness import FAILURE, LEAST_VARIANCE, log_ratio


def log_skellam(k: np.ndarray, variance: float) -> np.ndarray:
    """log(e^-v I_k(v))."""
    found = np.log(special.ive(np.abs(k), variance))
    assert np.isfinite(found).all(), "scipy's function ends somewhere above 1e9"
    return found


def test_the_ratio_of_one_value_by_hand() -> None:
    """X^2 = (log 4 + 120) / 0.49 = 247.73, so that the largest log ratio is (X^4 / 24 + 0.6 X^2 + 0.5) / v."""
    most = (247.727**2 / 24 + 0.6 * 247.727 + 0.5) / 1e6
    assert log_ratio(1e6, 1) == pytest.approx(4e-12 + math.sqrt(960) / 1e6 + 160 * most, rel=1e-5)


def test_more_values_and_coarser_steps_differ_more() -> None:
    assert log_ratio(1e10, 10**6) < log_ratio(1e10, 10**8) < log_ratio(1e9, 10**8)
    assert log_ratio(LEAST_VARIANCE, 1) < math.inf
    assert log_ratio(LEAST_VARIANCE * 0.99, 1) == math.inf
    assert FAILURE < 1e-50


@pytest.mark.parametrize("rate", [1.0, 0.25])
@pytest.mark.parametrize(
    ("multiplier", "steps", "delta"), [(1.0, 10_000, 1e-5), (0.5, 20_000, 1e-3), (3.0, 4_000, 1e-8)]
)
def test_one_value_by_its_exact_probabilities(multiplier: float, steps: int, delta: float, rate: float) -> None:
    """delta at the epsilon that is told, summed over all values, in both directions: never more, and hardly less."""
    variance = (multiplier * steps) ** 2
    far = int(10 * math.sqrt(variance))
    k = np.arange(-far, far + steps)
    without, with_it = (np.exp(log_skellam(k - by, variance)) for by in (0, steps))
    mixed = rate * with_it + (1 - rate) * without

    def exact(told: float) -> float:
        one, other = mixed - math.exp(told) * without, without - math.exp(told) * mixed
        return max(one[one > 0].sum(), other[other > 0].sum())

    noise = Noise("skellam", multiplier, steps, 1)
    told = epsilon([Rounds(noise, rate, 1)], delta)
    assert 0 < exact(told) <= delta
    assert exact(told - 0.03) > delta
    assert told < epsilon_bound([Rounds(noise, rate, 1)], delta)
