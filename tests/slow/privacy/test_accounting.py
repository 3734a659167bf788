"""The account of epsilon, held against other accountants, exact divergences and the design's own numbers."""

import math
from collections.abc import Callable
from time import process_time

import numpy as np
import pytest
from dp_accounting import dp_event, get_epsilon_gaussian
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import GaussianAccountant, PRVAccountant
from opacus.accountants.analysis.rdp import compute_rdp
from scipy import stats
from scipy.special import logsumexp

from fedtalk_ray.errors import ConfigError
from fedtalk_ray.federation.privacy_plan import PrivacyPlan
from fedtalk_ray.privacy.accounting import (
    ORDERS,
    Kind,
    Noise,
    Rounds,
    amplified,
    epsilon,
    epsilon_bound,
    merged,
    noise_multiplier,
    skellam_divergence,
)

DELTA = 1e-5
CASES = [(1.0, 0.01, 1000), (1.31, 0.25, 48), (2.08, 1.0, 12)]
"""Noise multiplier, sampling rate, rounds: the reference, and the design's release and server views."""

every_kind: pytest.MarkDecorator = pytest.mark.parametrize("kind", ["gaussian", "skellam"])


def gaussian(multiplier: float, rate: float, count: int) -> list[Rounds]:
    return [Rounds(Noise("gaussian", multiplier), rate, count)]


def skellam(multiplier: float, rate: float, count: int) -> list[Rounds]:
    return [Rounds(Noise("skellam", multiplier), rate, count)]


def test_the_reference_case() -> None:
    assert epsilon(gaussian(1.0, 0.01, 1000), DELTA) == pytest.approx(1.838, abs=0.005)


@pytest.mark.parametrize(("multiplier", "rate", "count"), CASES)
def test_another_librarys_accountant_agrees(multiplier: float, rate: float, count: int) -> None:
    """Google's dp-accounting, by privacy loss distributions: another method in other hands."""
    theirs = PLDAccountant()
    event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(multiplier))
    theirs.compose(dp_event.SelfComposedDpEvent(event, count))
    assert epsilon(gaussian(multiplier, rate, count), DELTA) == pytest.approx(theirs.get_epsilon(DELTA), abs=0.02)


@pytest.mark.parametrize(
    "parts",
    [
        [(1.31, 0.25, 48)],
        [(0.5, 0.2, 20)],
        [(5.0, 0.1, 3)],
        [(1.2, 0.5, 10), (1.5, 0.1, 30), (3.0, 1.0, 2)],
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_opacus_own_accountant_says_the_same(parts: list[tuple[float, float, int]]) -> None:
    """It cuts losses off elsewhere, and takes several times as long to find out where."""
    theirs = PRVAccountant()
    theirs.history = list(parts)
    rounds = [Rounds(Noise("gaussian", multiplier), rate, count) for multiplier, rate, count in parts]
    assert epsilon(rounds, DELTA) == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-5)


def test_hardly_any_noise_is_accounted_for_in_no_time() -> None:
    """A grid of privacy losses up to 13,000 took ten gigabytes and two minutes, and said infinity."""
    started = process_time()
    little = epsilon(gaussian(0.05, 0.25, 60), DELTA)
    assert process_time() - started < 10
    # No less than one round of them that somebody was in, and no more than all of them unsampled.
    assert get_epsilon_gaussian(0.05, DELTA) < little <= epsilon(gaussian(0.05, 1.0, 60), DELTA)


def test_the_accountant_that_under_reports_is_not_the_one_in_use() -> None:
    """GDP's central limit claims 1.6177 for the reference case, which takes 1.828 by PLD."""
    with pytest.warns(UserWarning, match="can underestimate"):
        gdp = GaussianAccountant()
    gdp.history = [(1.0, 0.01, 1000)]
    assert gdp.get_epsilon(DELTA) == pytest.approx(1.6177, abs=1e-3)
    assert epsilon(gaussian(1.0, 0.01, 1000), DELTA) > 1.82


@pytest.mark.parametrize(("multiplier", "rate", "count"), CASES)
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_the_renyi_figure_bounds_the_tight_one(multiplier: float, rate: float, count: int, delta: float) -> None:
    tight, bound = (find(gaussian(multiplier, rate, count), delta) for find in (epsilon, epsilon_bound))
    assert tight < bound < 1.25 * tight


@pytest.mark.parametrize(("multiplier", "count"), [(2.08, 12), (1.0, 1), (20.0, 100)])
def test_unamplified_gaussian_rounds_by_hand(multiplier: float, count: int) -> None:
    """Renyi divergence alpha n / (2 z^2), turned into epsilon by Canonne, Kamath and Steinke 2020."""
    expected = min(
        count * order / (2 * multiplier**2) + math.log1p(-1 / order) - (math.log(DELTA) + math.log(order)) / (order - 1)
        for order in ORDERS
    )
    assert epsilon_bound(gaussian(multiplier, 1.0, count), DELTA) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("variance", "shift"), [(1, 1), (4, 2), (25, 5), (100, 10), (100, 1), (400, 10), (10_000, 100)]
)
def test_skellams_divergence_bounds_the_exact_one(variance: int, shift: int) -> None:
    """D(P shifted || P) = log(sum p(x - s)^a p(x)^(1 - a)) / (a - 1), summed over all x that matter."""
    noise = Noise("skellam", math.sqrt(variance) / shift, shift, dimension=1)
    for order in (2, 3, 8):
        # The sum's weight lies around order * shift.
        reach = order * shift + 15 * math.ceil(math.sqrt(variance)) + 15
        x = np.arange(-reach, reach + 1)
        shifted, still = (stats.skellam.logpmf(x - by, variance / 2, variance / 2) for by in (shift, 0))
        seen = np.isfinite(shifted) & np.isfinite(still)
        exact = logsumexp(order * shifted[seen] - (order - 1) * still[seen]) / (order - 1)
        bound = skellam_divergence(order, noise)
        assert bound >= exact * (1 - 1e-6)
        if variance >= 400:
            assert bound < 1.03 * exact


def test_skellams_divergence_by_hand() -> None:
    """Agarwal et al. 2021, theorem 3.5, in both of its regimes; D1 is bounded by sqrt(d) D2 and by D2^2."""
    # mu = 4 * 100 = 400, D1 = min(sqrt(4) * 10, 100) = 20; the first branch is the smaller one.
    first = 5 * 100 / 800 + (9 * 100 + 6 * 20) / (4 * 400**2)
    assert skellam_divergence(5, Noise("skellam", 2.0, 10.0, 4)) == pytest.approx(first)
    # Many values: D1 = D2^2 = 100.
    many = 5 * 100 / 800 + (9 * 100 + 6 * 100) / (4 * 400**2)
    assert skellam_divergence(5, Noise("skellam", 2.0, 10.0, 10**8)) == pytest.approx(many)
    # mu = 1/4: the other branch, 3 D1 / (2 mu) = 6, beats (9 + 6) / (4 / 16) = 60.
    assert skellam_divergence(5, Noise("skellam", 0.5, 1.0, 1)) == pytest.approx(5 / 0.5 + 6)


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_skellam_costs_as_much_as_gaussian_at_fine_steps_and_more_at_coarse_ones(rate: float) -> None:
    """At 2^18 steps the excess is not seen; at coarse ones only the bound by Renyi divergence is left."""
    reference = epsilon(gaussian(2.0, rate, 12), DELTA)

    def coarse(bits: int) -> list[Rounds]:
        return [Rounds(Noise("skellam", 2.0, 2.0**bits, 1_000_000), rate, 12)]

    costs = [epsilon(coarse(bits), DELTA) / reference for bits in (18, 14, 12, 10, 4, 2, 1, 0)]
    assert costs[0] == pytest.approx(1, abs=1e-5)
    assert costs == sorted(costs) and 1 < costs[1] < 1.01 and costs[-1] > 1.25
    assert epsilon(coarse(4), DELTA) == epsilon_bound(coarse(4), DELTA)


@pytest.mark.parametrize(("multiplier", "rate"), [(1.0, 0.01), (1.31, 0.25), (2.0, 0.1), (4.0, 0.05), (3.0, 0.5)])
def test_amplification_lies_between_the_exact_one_and_none(multiplier: float, rate: float) -> None:
    """For Gaussian noise the exact divergence is known; the bound for every mechanism is a small factor above."""

    def divergence(order: float) -> float:
        return order / (2 * multiplier**2)

    for order in (2, 3, 5, 10, 32, 64, 256):
        exact = compute_rdp(q=rate, noise_multiplier=multiplier, steps=1, orders=[order])[0]
        bound = amplified(order, rate, divergence)
        assert exact * (1 - 1e-9) <= bound <= divergence(order)
        assert bound < 6 * exact
    assert amplified(2, rate, divergence) == pytest.approx(
        compute_rdp(q=rate, noise_multiplier=multiplier, steps=1, orders=[2])[0]
    )


def test_amplification_by_hand() -> None:
    """Zhu and Wang 2019, theorem 5, at order 3. For Gaussian noise alone the factor of 3 could go."""
    rate, divergences = 0.3, {2: 0.4, 3: 0.9}
    moment = 0.7**2 * (1 + 2 * 0.3) + 3 * 0.3**2 * 0.7 * math.exp(0.4) + 3 * 0.3**3 * math.exp(2 * 0.9)
    assert amplified(3, rate, divergences.__getitem__) == pytest.approx(math.log(moment) / 2)


@settings(max_examples=60, deadline=None)
@given(truth=st.floats(0.5, 0.999), rate=st.floats(0.001, 0.999), order=st.integers(2, 40))
def test_amplification_holds_for_a_mechanism_that_is_not_gaussian(truth: float, rate: float, order: int) -> None:
    """Randomised response, whose divergences after sampling can be written down, in both directions."""

    def renyi(p: float, q: float, alpha: float) -> float:
        terms = [alpha * math.log(a) + (1 - alpha) * math.log(b) for a, b in ((p, q), (1 - p, 1 - q))]
        return float(logsumexp(terms)) / (alpha - 1)

    mixed = rate * truth + (1 - rate) * (1 - truth)
    exact = max(renyi(mixed, 1 - truth, order), renyi(1 - truth, mixed, order))
    assert amplified(order, rate, lambda alpha: renyi(truth, 1 - truth, alpha)) >= exact - 1e-12


@settings(max_examples=30, deadline=None)
@given(multiplier=st.floats(0.3, 20), rate=st.floats(1e-4, 1 - 1e-9), order=st.integers(2, 64))
def test_sampling_never_costs(multiplier: float, rate: float, order: int) -> None:
    whole = skellam_divergence(order, Noise("skellam", multiplier))
    assert 0 < amplified(order, rate, lambda alpha: skellam_divergence(alpha, Noise("skellam", multiplier))) <= whole


def test_sampling_everybody_is_no_sampling() -> None:
    for order in (2, 7, 64):
        almost = amplified(order, 1 - 1e-12, lambda alpha: alpha / 8)
        assert almost == pytest.approx(order / 8, rel=1e-6)
    assert epsilon(skellam(2.0, 1 - 1e-12, 5), DELTA) == pytest.approx(epsilon(skellam(2.0, 1.0, 5), DELTA), abs=0.02)


@every_kind
def test_rounds_add_up(kind: Kind) -> None:
    """In parts, in any order, and never less than any part alone."""
    one, other = Noise(kind, 2.0), Noise(kind, 3.0)
    whole = epsilon([Rounds(one, 1.0, 10)], DELTA)
    assert epsilon([Rounds(one, 1.0, 4), Rounds(one, 1.0, 6)], DELTA) == pytest.approx(whole, abs=1e-3)
    both = [Rounds(one, 1.0, 10), Rounds(other, 1.0, 2)]
    assert epsilon(both, DELTA) == pytest.approx(epsilon(both[::-1], DELTA), abs=1e-3)
    # For Gaussian noise the inverse variances add up: 10 / 2^2 + 2 / 3^2 = 1 / z^2 of a single round.
    single = epsilon([Rounds(Noise(kind, (10 / 4 + 2 / 9) ** -0.5), 1.0, 1)], DELTA)
    assert epsilon(both, DELTA) == pytest.approx(single, abs=0.02)
    assert epsilon_bound([*both, Rounds(one, 0.25, 2)], DELTA) > epsilon_bound(both, DELTA)
    assert epsilon_bound(both, DELTA) < sum(epsilon_bound([part], DELTA) for part in both)


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_rounds_of_either_noise_add_up_to_more_than_gaussian_ones(rate: float) -> None:
    mixed = [*gaussian(2.0, rate, 5), *skellam(2.0, rate, 5)]
    assert 0 < epsilon(mixed, DELTA) - epsilon(gaussian(2.0, rate, 10), DELTA) < 1e-3
    few = [*gaussian(2.0, rate, 5), Rounds(Noise("skellam", 2.0, 4.0), rate, 5)]
    assert epsilon(few, DELTA) == epsilon_bound(few, DELTA)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize(("multiplier", "count"), [(2.08, 12), (1.0, 1), (20.0, 100), (0.3, 5), (0.2, 1000)])
def test_unsampled_gaussian_rounds_are_exact(multiplier: float, count: int, delta: float) -> None:
    """Held against dp-accounting's own root of the same equation."""
    expected = get_epsilon_gaussian(multiplier / math.sqrt(count), delta)
    assert epsilon(gaussian(multiplier, 1.0, count), delta) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@every_kind
def test_what_never_happened_costs_nothing(kind: Kind) -> None:
    noise = Noise(kind, 1.0)
    assert epsilon([], DELTA) == 0
    assert epsilon([Rounds(noise, 0.5, 0), Rounds(noise, 0.0, 10)], DELTA) == 0
    some = [Rounds(noise, 0.5, 3)]
    assert epsilon([*some, Rounds(Noise(kind, 0.01), 0.5, 0)], DELTA) == epsilon(some, DELTA)


@every_kind
def test_more_noise_fewer_rounds_and_rarer_sampling_cost_less(kind: Kind) -> None:
    def cost(multiplier: float = 1.5, rate: float = 0.25, count: int = 20, delta: float = DELTA) -> float:
        return epsilon([Rounds(Noise(kind, multiplier), rate, count)], delta)

    whole = cost()
    assert cost(rate=1.0) > whole > cost(rate=0.2) > 0
    assert whole > cost(multiplier=1.6)
    assert whole > cost(count=19)
    assert whole > cost(delta=1e-4)


@pytest.mark.parametrize(
    ("kind", "target", "rate", "count"),
    [
        ("gaussian", 8.0, 1.0, 12),
        ("skellam", 8.0, 1.0, 12),
        ("skellam", 8.0, 0.25, 48),
        ("skellam", 0.5, 1.0, 3),
    ],
)
def test_the_noise_for_a_budget_is_the_smallest_to_a_thousandth(
    kind: Kind, target: float, rate: float, count: int
) -> None:
    def cost(multiplier: float) -> float:
        return epsilon([Rounds(Noise(kind, multiplier), rate, count)], DELTA)

    found = noise_multiplier(target, DELTA, rate=rate, count=count, make=lambda z: Noise(kind, z))
    assert cost(found) <= target < cost(found - 0.0015)


def test_budgets_below_what_one_accountant_can_tell_are_found_by_the_other() -> None:
    """PRV never says less than its own error, a hundredth."""

    def cost(multiplier: float) -> float:
        return epsilon(gaussian(multiplier, 0.01, 10), DELTA)

    found = noise_multiplier(0.009, DELTA, rate=0.01, count=10, make=lambda z: Noise("gaussian", z))
    assert cost(found) <= 0.009 < cost(found - 0.01)


def test_a_smaller_budget_takes_more_noise() -> None:
    def needed(target: float, count: int) -> float:
        return noise_multiplier(target, DELTA, rate=1.0, count=count, make=lambda z: Noise("skellam", z))

    by_target = [needed(target, 12) for target in (16.0, 8.0, 4.0, 2.0, 1.0, 0.5)]
    assert by_target == sorted(by_target) and len(set(by_target)) == 6
    by_count = [needed(8.0, count) for count in (1, 4, 12, 48)]
    assert by_count == sorted(by_count) and len(set(by_count)) == 4


def test_a_budget_that_is_never_used_up_takes_little_noise() -> None:
    make: Callable[[float], Noise] = lambda z: Noise("gaussian", z)  # noqa: E731
    assert noise_multiplier(1e4, DELTA, rate=1.0, count=1, make=make) == 0.2


def test_a_budget_that_no_noise_can_keep_is_refused() -> None:
    with pytest.raises(ValueError, match="no noise multiplier up to 1000 gives epsilon 1e-06"):
        noise_multiplier(1e-6, DELTA, rate=1.0, count=12, make=lambda z: Noise("skellam", z))


def test_the_designs_plan() -> None:
    """64 clients, 48 rounds, q = 0.25, at most 12 rounds each, epsilon 8 at delta 1e-5."""
    plan = PrivacyPlan("gaussian", DELTA, rate=0.25, rounds=48, cap=12)
    assert plan.multiplier(8.0, "release") == pytest.approx(1.31, abs=0.01)
    assert plan.multiplier(8.0, "server") == pytest.approx(2.08, abs=0.01)


def test_a_plan_knows_both_views() -> None:
    """What suffices for the one is not enough for the other: 8 to the public is more than 8 to the server."""
    spent = PrivacyPlan("gaussian", DELTA, rate=0.25, rounds=48, cap=12).spent(1.31)
    assert spent["release"] == pytest.approx(8.0, abs=0.05)
    assert spent["server"] > 12
    # Without sampling and without a cap below the rounds the views are the same.
    alike = PrivacyPlan("gaussian", DELTA, rate=1.0, rounds=12, cap=12).spent(2.08)
    assert alike["release"] == alike["server"] == pytest.approx(8.0, abs=0.02)


def test_who_knows_less_never_learns_more() -> None:
    """With few rounds for each client, counting these beats 48 sampled ones, in either view."""
    plan = PrivacyPlan("skellam", DELTA, rate=0.25, rounds=48, cap=2)
    spent = plan.spent(1.5)
    assert spent["release"] == spent["server"] < epsilon(skellam(1.5, 0.25, 48), DELTA)
    assert plan.multiplier(4.0, "release") == plan.multiplier(4.0, "server")
    # With a cap that hardly limits anything, sampling is what helps.
    loose = PrivacyPlan("skellam", DELTA, rate=0.25, rounds=48, cap=40)
    assert loose.spent(1.5)["release"] == pytest.approx(epsilon(skellam(1.5, 0.25, 48), DELTA), rel=1e-3)
    assert loose.spent(1.5)["server"] > 1.5 * loose.spent(1.5)["release"]


def test_a_plan_that_cannot_hold_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon: no noise multiplier up to 1000"):
        PrivacyPlan("skellam", DELTA, rate=1.0, rounds=12, cap=12).multiplier(1e-6, "server")


def test_equal_rounds_are_counted_together() -> None:
    one, other = Noise("skellam", 1.0), Noise("skellam", 1.0, dimension=7)
    parts = [Rounds(one, 0.5, 1), Rounds(other, 0.5, 2), Rounds(one, 0.5, 3), Rounds(one, 1.0, 4)]
    assert merged(parts) == [Rounds(one, 0.5, 4), Rounds(other, 0.5, 2), Rounds(one, 1.0, 4)]
    assert epsilon(merged(parts), DELTA) == pytest.approx(epsilon(parts, DELTA), rel=1e-4)


@pytest.mark.parametrize("target", [9.96, 7.52, 9.38])
def test_the_noise_for_a_budget_never_overspends_it(target: float) -> None:
    plan = PrivacyPlan("skellam", 1e-5, 1.0, 12, 12)
    assert plan.spent(plan.multiplier(target, "server"))["server"] <= target
