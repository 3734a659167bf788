"""Who holds whose shares: everybody's up to 100 clients, above that thirty-two that every client draws itself."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from scipy.special import comb
from scipy.stats import hypergeom

from fedtalk_ray.privacy import graph
from fedtalk_ray.privacy.graph import chance, chosen, fewest, holders, quorum, threshold, tolerated


def names(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 99, 100])
def test_up_to_100_everybody_holds_everybodys_shares(count: int) -> None:
    for client in names(count):
        assert list(chosen(names(count), client)) == sorted(set(names(count)) - {client})
    assert holders(count) == count - 1


@pytest.mark.parametrize("count", [101, 256, 1000])
def test_above_100_each_draws_as_many_as_is_stated(count: int) -> None:
    for client in names(count):
        drawn = chosen(names(count), client)
        assert len(set(drawn)) == holders(count) == 32 < count - 1
        assert client not in drawn and list(drawn) == sorted(drawn) and set(drawn) < set(names(count))


def test_the_designs_numbers() -> None:
    assert (holders(256), threshold(256), quorum(256), fewest(256)) == (32, 20, 171, 128)
    assert (holders(64), threshold(64), quorum(64), fewest(64)) == (63, 43, 43, 43)
    assert [threshold(count) for count in (3, 8, 10, 16)] == [3, 6, 7, 11]


@pytest.mark.parametrize("count", [*range(1, 103), 128, 256, 1000, 10_000])
def test_more_than_half_of_the_holders_are_needed_and_no_more_than_there_are(count: int) -> None:
    """Two disjoint sets of holders could otherwise be asked for one kind of share each."""
    assert (holders(count) + 1) / 2 < threshold(count) <= holders(count) + 1
    assert count / 2 < quorum(count) <= count
    assert count // 2 <= fewest(count) <= quorum(count)


@pytest.mark.parametrize(
    ("count", "most"),
    # By hand: 2 * 6 - 8 - 1, 2 * 11 - 16 - 1, 2 * 43 - 64 - 1, 2 * 67 - 100 - 1; the sparse ones from the bound.
    [(8, 3), (16, 5), (64, 21), (100, 33), (101, 14), (128, 14), (256, 25)],
)
def test_how_many_may_be_in_league_with_a_lying_server(count: int, most: int) -> None:
    assert tolerated(count) == most


def test_no_client_is_drawn_more_often_than_another() -> None:
    count, rounds = 101, 600
    seen = Counter(other for _ in range(rounds) for other in chosen(names(count), "s0"))
    rate = holders(count) / (count - 1)
    deviation = (rounds * rate * (1 - rate)) ** 0.5
    assert len(seen) == count - 1
    assert all(abs(times - rounds * rate) < 5 * deviation for times in seen.values())


@pytest.mark.parametrize(("count", "colluders"), [(101, 0), (101, 14), (256, 25), (256, 60)])
def test_the_bound_is_the_sum_that_is_stated(count: int, colluders: int) -> None:
    """Term by term with scipy's hypergeometric tails."""
    k, needed = holders(count), threshold(count) - 1
    total = 0.0
    for size in range(1, fewest(count) - colluders):
        tail = hypergeom(count - 1, size - 1 + colluders, k).sf(needed - 1)
        if tail > 0:
            total += min(1.0, math.exp(math.log(comb(count - colluders, size)) + size * math.log(tail)))
    assert chance(count, colluders) == pytest.approx(min(1.0, total), rel=1e-4, abs=1e-20)


def is_closed(inside: set[int], colluders: set[int], drawn: list[set[int]], needed: int) -> bool:
    """Whether each of the honest clients `inside` has so many of its holders there or among the colluders."""
    return all(len(drawn[client] & (inside | colluders)) >= needed for client in inside)


def test_sets_that_could_be_told_apart_are_as_rare_as_the_bound_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve clients of whom three are the server's, with six holders each: all sets are looked at in many draws."""
    monkeypatch.setattr(graph, "SPARSE", 6)
    count, colluders, most = 12, {9, 10, 11}, 8
    needed = threshold(count, most) - 1
    rng = np.random.default_rng(0)
    draws, found = 400, 0
    for _ in range(draws):
        drawn = [set(rng.permutation([o for o in range(count) if o != i])[:6].tolist()) for i in range(count)]
        found += any(
            is_closed(set(inside), colluders, drawn, needed)
            for size in range(1, fewest(count, most) - len(colluders))
            for inside in combinations(range(count - len(colluders)), size)
        )
    bound = chance(count, len(colluders), most)
    assert 0 < found / draws <= bound < 1, (found / draws, bound)


def test_a_complete_graph_leaves_nothing_to_chance() -> None:
    """With so many of the server's own as may be, no smaller set has two thirds of the holders on its side."""
    for count in (8, 9, 10, 16, 64, 100):
        t = threshold(count)
        assert all(size + tolerated(count) < t for size in range(count - quorum(count)))


def is_opened(drawn: dict[str, set[str]], there: set[str], needed: int) -> bool:
    """Whether a round is opened to which only these come, and all of them stay: by the rules of clients and server."""
    shared = {name for name in there if len(drawn[name] & there) + 1 >= needed}
    masked = {name for name in shared if len(drawn[name] & shared) + 1 >= needed}
    seeds = all(len(drawn[name] & shared & masked) + 1 >= needed for name in masked)
    return (
        len(masked) >= quorum(len(drawn)) and seeds and all(len(drawn[n] & masked) >= needed for n in shared - masked)
    )


@pytest.mark.parametrize(
    ("count", "stay", "most_lost"), [(128, 0.8, 2), (256, 0.8, 3), (256, 0.75, 19), (256, 0.7, 20)]
)
def test_a_fifth_of_a_large_cohort_may_leave(count: int, stay: float, most_lost: int) -> None:
    """Of twenty rounds. Of 400 none of 128 clients was lost and four of 256; of a hundred with a quarter away, 54."""
    rng = np.random.default_rng(0)
    lost = 0
    for _ in range(20):
        drawn = {name: set(chosen(names(count), name)) for name in names(count)}
        there = set(rng.choice(names(count), round(stay * count), replace=False).tolist())
        lost += not is_opened(drawn, there, threshold(count))
    assert lost <= most_lost
    assert lost > 0 or stay >= 0.8
