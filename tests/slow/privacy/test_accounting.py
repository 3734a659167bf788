"""The account of epsilon, held against other accountants, exact divergences and the design's own numbers."""

import math

import pytest
from dp_accounting import dp_event, get_epsilon_gaussian
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant

from fedtalk_ray.errors import ConfigError
from fedtalk_ray.federation.privacy_plan import PrivacyPlan
from fedtalk_ray.privacy.accounting import (
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


@pytest.mark.parametrize(("multiplier", "rate", "count"), CASES)
def test_another_librarys_accountant_agrees(multiplier: float, rate: float, count: int) -> None:
    """Google's dp-accounting, by privacy loss distributions: another method in other hands."""
    theirs = PLDAccountant()
    event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(multiplier))
    theirs.compose(dp_event.SelfComposedDpEvent(event, count))
    assert epsilon(gaussian(multiplier, rate, count), DELTA) == pytest.approx(theirs.get_epsilon(DELTA), abs=0.02)


@pytest.mark.parametrize("parts", [[(0.5, 0.2, 20)], [(1.2, 0.5, 10), (1.5, 0.1, 30), (3.0, 1.0, 2)]])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_opacus_own_accountant_says_the_same(parts: list[tuple[float, float, int]]) -> None:
    theirs = PRVAccountant()
    theirs.history = list(parts)
    rounds = [Rounds(Noise("gaussian", multiplier), rate, count) for multiplier, rate, count in parts]
    assert epsilon(rounds, DELTA) == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-5)


def test_skellams_divergence_by_hand() -> None:
    """Agarwal et al. 2021, theorem 3.5, in both of its regimes; D1 is bounded by sqrt(d) D2 and by D2^2."""
    first = 5 * 100 / 800 + (9 * 100 + 6 * 20) / (4 * 400**2)
    assert skellam_divergence(5, Noise("skellam", 2.0, 10.0, 4)) == pytest.approx(first)
    many = 5 * 100 / 800 + (9 * 100 + 6 * 100) / (4 * 400**2)
    assert skellam_divergence(5, Noise("skellam", 2.0, 10.0, 10**8)) == pytest.approx(many)
    assert skellam_divergence(5, Noise("skellam", 0.5, 1.0, 1)) == pytest.approx(5 / 0.5 + 6)


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_skellam_costs_as_much_as_gaussian_at_fine_steps_and_more_at_coarse_ones(rate: float) -> None:
    """At 2^18 steps the excess is not seen; at coarse ones only the bound by Renyi divergence is left."""
    reference = epsilon(gaussian(2.0, rate, 12), DELTA)

    def coarse(bits: int) -> list[Rounds]:
        return [Rounds(Noise("skellam", 2.0, 2.0**bits, 1_000_000), rate, 12)]

    costs = [epsilon(coarse(bits), DELTA) / reference for bits in (18, 14, 10, 4, 1, 0)]
    assert costs[0] == pytest.approx(1, abs=1e-5)
    assert costs == sorted(costs) and 1 < costs[1] < 1.01 and costs[-1] > 1.25
    assert epsilon(coarse(4), DELTA) == epsilon_bound(coarse(4), DELTA)


def test_amplification_by_hand() -> None:
    """Zhu and Wang 2019, theorem 5, at order 3. For Gaussian noise alone the factor of 3 could go."""
    rate, divergences = 0.3, {2: 0.4, 3: 0.9}
    moment = 0.7**2 * (1 + 2 * 0.3) + 3 * 0.3**2 * 0.7 * math.exp(0.4) + 3 * 0.3**3 * math.exp(2 * 0.9)
    assert amplified(3, rate, divergences.__getitem__) == pytest.approx(math.log(moment) / 2)


@pytest.mark.parametrize("delta", [1e-3, 1e-8])
def test_the_renyi_figure_bounds_the_tight_one(delta: float) -> None:
    for case in CASES[1:]:
        tight, bound = (find(gaussian(*case), delta) for find in (epsilon, epsilon_bound))
        assert tight < bound < 1.25 * tight


@every_kind
def test_rounds_add_up(kind: Kind) -> None:
    """In parts, in any order, and never less than any part alone; what never happened costs nothing."""
    one, other = Noise(kind, 2.0), Noise(kind, 3.0)
    assert epsilon([], DELTA) == epsilon([Rounds(one, 0.5, 0), Rounds(one, 0.0, 10)], DELTA) == 0
    whole = epsilon([Rounds(one, 1.0, 10)], DELTA)
    assert epsilon([Rounds(one, 1.0, 4), Rounds(one, 1.0, 6)], DELTA) == pytest.approx(whole, abs=1e-3)
    both = [Rounds(one, 1.0, 10), Rounds(other, 1.0, 2)]
    assert epsilon(both, DELTA) == pytest.approx(epsilon(both[::-1], DELTA), abs=1e-3)
    single = get_epsilon_gaussian((10 / 4 + 2 / 9) ** -0.5, DELTA)
    assert epsilon(both, DELTA) == pytest.approx(single, rel=1e-6 if kind == "gaussian" else 1e-2)
    assert epsilon_bound([*both, Rounds(one, 0.25, 2)], DELTA) > epsilon_bound(both, DELTA)
    assert epsilon_bound(both, DELTA) < sum(epsilon_bound([part], DELTA) for part in both)


@pytest.mark.parametrize(
    ("kind", "target", "rate", "count"),
    [("gaussian", 8.0, 1.0, 12), ("gaussian", 0.009, 0.01, 10), ("skellam", 8.0, 0.25, 48), ("skellam", 0.5, 1.0, 3)],
)
def test_the_noise_for_a_budget_is_the_smallest_to_a_thousandth(
    kind: Kind, target: float, rate: float, count: int
) -> None:
    def cost(multiplier: float) -> float:
        return epsilon([Rounds(Noise(kind, multiplier), rate, count)], DELTA)

    found = noise_multiplier(target, DELTA, rate=rate, count=count, make=lambda z: Noise(kind, z))
    assert cost(found) <= target < cost(found - (0.0015 if target > 0.1 else 0.01))


def test_a_budget_that_no_noise_can_keep_is_refused() -> None:
    with pytest.raises(ValueError, match="no noise multiplier up to 1000 gives epsilon 1e-06"):
        noise_multiplier(1e-6, DELTA, rate=1.0, count=12, make=lambda z: Noise("skellam", z))


def test_the_designs_plan() -> None:
    """64 clients, 48 rounds, q = 0.25, at most 12 rounds each, epsilon 8 at delta 1e-5, to the public or the server."""
    plan = PrivacyPlan("gaussian", DELTA, rate=0.25, rounds=48, cap=12)
    assert plan.multiplier(8.0, "release") == pytest.approx(1.31, abs=0.01)
    assert plan.multiplier(8.0, "server") == pytest.approx(2.08, abs=0.01)
    assert plan.spent(1.31)["release"] == pytest.approx(8.0, abs=0.05) and plan.spent(1.31)["server"] > 12
    everybody = PrivacyPlan("skellam", DELTA, rate=1.0, rounds=12, cap=12)
    assert 9.9 < everybody.spent(everybody.multiplier(9.96, "server"))["server"] <= 9.96
    with pytest.raises(ConfigError, match=r"privacy\.epsilon: no noise multiplier up to 1000"):
        everybody.multiplier(1e-6, "server")


def test_who_knows_less_never_learns_more() -> None:
    """With few rounds for each client, counting these beats 48 sampled ones, in either view."""
    plan = PrivacyPlan("skellam", DELTA, rate=0.25, rounds=48, cap=2)
    spent, sampled = plan.spent(1.5), epsilon([Rounds(Noise("skellam", 1.5), 0.25, 48)], DELTA)
    assert spent["release"] == spent["server"] < sampled
    assert plan.multiplier(4.0, "release") == plan.multiplier(4.0, "server")
    loose = PrivacyPlan("skellam", DELTA, rate=0.25, rounds=48, cap=40).spent(1.5)
    assert loose["release"] == pytest.approx(sampled, rel=1e-3)
    assert loose["server"] > 1.5 * loose["release"]


def test_equal_rounds_are_counted_together() -> None:
    one, other = Noise("skellam", 1.0), Noise("skellam", 1.0, dimension=7)
    parts = [Rounds(one, 0.5, 1), Rounds(other, 0.5, 2), Rounds(one, 0.5, 3), Rounds(one, 1.0, 4)]
    assert merged(parts) == [Rounds(one, 0.5, 4), Rounds(other, 0.5, 2), Rounds(one, 1.0, 4)]
    assert epsilon(merged(parts), DELTA) == pytest.approx(epsilon(parts, DELTA), rel=1e-4)
