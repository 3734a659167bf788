"""How far Skellam noise is from Gaussian noise, held against exact probabilities, and what it costs, exactly."""

import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from fedtalk_ray.privacy.accounting import Noise, Rounds, epsilon, epsilon_bound
from fedtalk_ray.privacy.skellam_likeness import FAILURE, LEAST_VARIANCE, log_ratio

VARIANCES = [1e4, 3.3e4, 1e6]


def log_skellam(k: np.ndarray, variance: float) -> np.ndarray:
    """log(e^-v I_k(v))."""
    found = np.log(special.ive(np.abs(k), variance))
    assert np.isfinite(found).all(), "scipy's function ends somewhere above 1e9"
    return found


def log_rounded(k: np.ndarray, variance: float) -> np.ndarray:
    """Of a Gaussian value in [k - 1/2, k + 1/2], with the tail that loses nothing."""
    deviation = math.sqrt(variance)
    near, far = special.log_ndtr(-(np.abs(k) - 0.5) / deviation), special.log_ndtr(-(np.abs(k) + 0.5) / deviation)
    # log(e^near - e^far); for small x both are nearly one half, where differences of ndtr lose digits: the density's
    # own series is exact to 1e-16 there.
    x = np.abs(k) / deviation
    series = stats.norm.logpdf(x) - math.log(deviation) + np.log1p((x**2 - 1) / (24 * variance))
    return np.where(x < 8, series, near + np.log1p(-np.exp(far - near)))


def envelope(x: np.ndarray) -> np.ndarray:
    return x**4 / 24 + 0.6 * x**2 + 0.5


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_ratio_of_probabilities_stays_below_its_bound(variance: float) -> None:
    """Step 3: at every value up to 15 deviations, or as many of them as fit into a test."""
    far = int(15 * math.sqrt(variance))
    k = np.unique(np.linspace(-far, far, 20_001).astype(int))
    ratio = log_skellam(k, variance) - log_rounded(k, variance)
    # Digits of logarithms of some hundred are left.
    assert (np.abs(ratio) <= envelope(k / math.sqrt(variance)) / variance + 2e-12).all()
    # And it is of that order: a bound a hundred times smaller would not hold.
    assert np.abs(ratio).max() > envelope(np.array([15.0]))[0] / variance / 10


@pytest.mark.parametrize("variance", VARIANCES)
def test_ratios_of_neighbours_and_the_value_at_zero(variance: float) -> None:
    """Steps 1 and 2."""
    j = np.unique(np.geomspace(1, 15 * math.sqrt(variance), 500).astype(int))
    ratio = special.ive(j + 1, variance) / special.ive(j, variance)
    a = j + 0.5
    assert (ratio <= variance / (a + np.sqrt(variance**2 + a**2)) * (1 + 1e-14)).all()
    assert (ratio >= variance / (a + np.sqrt(variance**2 + (a + 1) ** 2)) * (1 - 1e-14)).all()
    at_zero = math.sqrt(2 * math.pi * variance) * special.ive(0, variance)
    assert 1 - 1e-14 <= at_zero <= 1 + 1 / (4 * variance)


@pytest.mark.parametrize("variance", [1e4, 1e6])
def test_the_squared_bound_has_the_mean_that_is_claimed_under_either_noise(variance: float) -> None:
    k = np.arange(-int(20 * math.sqrt(variance)), int(20 * math.sqrt(variance)) + 1)
    squared = envelope(k / math.sqrt(variance)) ** 2
    for log_probability in (log_skellam(k, variance), log_rounded(k, variance)):
        probability = np.exp(log_probability)
        assert probability.sum() == pytest.approx(1, abs=1e-9)
        assert 2 < (probability * squared).sum() < 4


def test_scipys_bessel_function_is_the_integral() -> None:
    """e^-v I_k(v) = 1/pi integral of e^(v (cos t - 1)) cos(k t); so the values above are no artefact of one library."""
    for k, variance in ((0, 1e4), (50, 1e4), (300, 1e4)):
        exact, _ = integrate.quad(
            lambda t, k=k, v=variance: math.exp(v * (math.cos(t) - 1)) * math.cos(k * t), 0, 0.2, limit=500
        )
        assert special.ive(k, variance) == pytest.approx(exact / math.pi, rel=1e-7)


def test_many_values_rarely_leave_the_ratio() -> None:
    """Sums of 4,000 logarithms have the deviation that the next term of the density has, sqrt(n / 24) / v, and none of
    200 comes near tau."""
    variance, rng = 1e6, np.random.default_rng(0)
    k = rng.poisson(variance / 2, (200, 4_000)) - rng.poisson(variance / 2, (200, 4_000))
    sums = (log_skellam(k, variance) - log_rounded(k, variance)).sum(1)
    assert sums.std() == pytest.approx(math.sqrt(4_000 / 24) / variance, rel=0.3)
    assert np.abs(sums).max() < log_ratio(variance, 4_000) / 100


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
