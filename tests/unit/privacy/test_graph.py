"""Who holds whose shares: everybody's up to 100 clients, above that thirty-two that every client draws itself."""

import math
from collections import Counter

import pytest
from scipy.special import comb
from scipy.stats import hypergeom

from fedtalk_ray.privacy.graph import chance, chosen, fewest, holders, quorum, threshold, tolerated


def names(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 8, 100])
def test_up_to_100_everybody_holds_everybodys_shares(count: int) -> None:
    for client in names(count)[::7]:
        assert list(chosen(names(count), client)) == sorted(set(names(count)) - {client})
    assert holders(count) == count - 1


@pytest.mark.parametrize("count", [101, 1000])
def test_above_100_each_draws_as_many_as_is_stated(count: int) -> None:
    for client in names(count)[::10]:
        drawn = chosen(names(count), client)
        assert len(set(drawn)) == holders(count) == 32 < count - 1
        assert client not in drawn and list(drawn) == sorted(drawn) and set(drawn) < set(names(count))


def test_the_designs_numbers() -> None:
    assert (holders(256), threshold(256), quorum(256), fewest(256)) == (32, 20, 171, 128)
    assert (holders(64), threshold(64), quorum(64), fewest(64)) == (63, 43, 43, 43)
    assert [threshold(count) for count in (3, 8, 10, 16)] == [3, 6, 7, 11]


def test_more_than_half_of_the_holders_are_needed_and_no_more_than_there_are() -> None:
    """Two disjoint sets of holders could otherwise be asked for one kind of share each."""
    for count in (*range(1, 103), 128, 256, 1000, 10_000):
        assert (holders(count) + 1) / 2 < threshold(count) <= holders(count) + 1
        assert count / 2 < quorum(count) <= count
        assert count // 2 <= fewest(count) <= quorum(count)


def test_how_many_may_be_in_league_with_a_lying_server() -> None:
    """By hand: 2 * 6 - 8 - 1, 2 * 11 - 16 - 1, 2 * 43 - 64 - 1, 2 * 67 - 100 - 1; the sparse ones from the bound."""
    found = {8: 3, 16: 5, 64: 21, 100: 33, 101: 14, 128: 14, 256: 25}
    assert {count: tolerated(count) for count in found} == found


def test_no_client_is_drawn_more_often_than_another() -> None:
    count, rounds = 101, 300
    seen = Counter(other for _ in range(rounds) for other in chosen(names(count), "s0"))
    rate = holders(count) / (count - 1)
    deviation = (rounds * rate * (1 - rate)) ** 0.5
    assert len(seen) == count - 1
    assert all(abs(times - rounds * rate) < 5 * deviation for times in seen.values())


@pytest.mark.parametrize(("count", "colluders"), [(101, 14), (256, 25)])
def test_the_bound_is_the_sum_that_is_stated(count: int, colluders: int) -> None:
    """Term by term with scipy's hypergeometric tails."""
    k, needed = holders(count), threshold(count) - 1
    total = 0.0
    for size in range(1, fewest(count) - colluders):
        tail = hypergeom(count - 1, size - 1 + colluders, k).sf(needed - 1)
        if tail > 0:
            total += min(1.0, math.exp(math.log(comb(count - colluders, size)) + size * math.log(tail)))
    assert chance(count, colluders) == pytest.approx(min(1.0, total), rel=1e-4, abs=1e-20)
