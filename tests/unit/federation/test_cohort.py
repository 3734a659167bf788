"""Cohorts: repeatable, without replacement, uniform; chunks that lose nobody."""

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.actors.pool import into_chunks
from fedtalk_ray.federation.cohorts import poisson_cohort, sample_cohort
from fedtalk_ray.privacy.noise import system_rng

TEN = [f"s{index}" for index in range(10)]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 2**40), st.integers(1, 10**6))
def test_nobody_twice_nobody_from_outside_in_order(people: int, size: int, seed: int, number: int) -> None:
    population = [f"s{index}" for index in range(people)]
    cohort = sample_cohort(population, size, seed, number)
    assert len(cohort) == min(size, people)
    assert cohort == sorted(set(cohort)) and set(cohort) <= set(population)


def test_everybody_is_drawn_equally_often_and_so_is_every_pair() -> None:
    """Chi-square against equal shares; the 0.1% points for 9 and 44 degrees of freedom are 27.9 and 78.7."""
    rounds = 2000
    cohorts = [sample_cohort(TEN, 3, 11, number) for number in range(1, rounds + 1)]
    share = 3 / 10
    alone = [sum(client in cohort for cohort in cohorts) for client in TEN]
    assert sum((n - rounds * share) ** 2 for n in alone) / (rounds * share * (1 - share) * 10 / 9) < 27.9
    expected = rounds * 3 / 45
    pairs = [sum({a, b} <= set(cohort) for cohort in cohorts) for a, b in combinations(TEN, 2)]
    assert sum((n - expected) ** 2 for n in pairs) / expected < 78.7


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20), st.integers(1, 8))
def test_chunks_hold_everybody_once_and_are_even(count: int, slots: int) -> None:
    cohort = [f"s{index:02d}" for index in range(count)]
    chunks = into_chunks(cohort, slots)
    assert sorted(client for chunk in chunks for client in chunk) == cohort
    assert len(chunks) == min(slots, count) and all(chunks)
    assert not chunks or max(map(len, chunks)) - min(map(len, chunks)) <= 1
    assert into_chunks(["a", "b", "c", "d", "e"], 2) == [["a", "c", "e"], ["b", "d"]], "dealt round robin"


def test_poisson_cohorts_take_everybody_by_a_coin_of_their_own() -> None:
    """400 cohorts of 50 clients at 0.3: each client is in 120 +- 9; sizes vary as a binomial's do."""
    population = [f"c{index:02d}" for index in range(50)]
    cohorts = [poisson_cohort(population, 0.3, {}, None, system_rng()) for _ in range(400)]
    counts = np.array([sum(name in cohort for cohort in cohorts) for name in population])
    assert np.abs(counts - 120).max() < 6 * np.sqrt(400 * 0.3 * 0.7)
    sizes = np.array([len(cohort) for cohort in cohorts])
    assert 0.6 < sizes.var() / (50 * 0.3 * 0.7) < 1.6
    assert all(cohort == sorted(cohort) for cohort in cohorts)
    assert len({tuple(cohort) for cohort in cohorts}) > 390


def test_who_reached_the_participation_cap_stays_out() -> None:
    assert poisson_cohort(["a", "b", "c"], 1.0, {"a": 2, "b": 1}, 2, system_rng()) == ["b", "c"]
