"""Who shares masks with whom: complete up to 64 clients, above that a connected ring that nobody can order."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from fedtalk_ray.privacy.graph import degree, neighbours, threshold, tolerated

SESSION = hashlib.sha256(b"session").digest()


def names(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)]


def reachable(graph: dict[str, tuple[str, ...]], without: frozenset[str] = frozenset()) -> set[str]:
    """Everybody that can be reached from one client over clients that are still there."""
    start = next(client for client in graph if client not in without)
    seen, todo = {start}, [start]
    while todo:
        fresh = set(graph[todo.pop()]) - without - seen
        seen |= fresh
        todo += fresh
    return seen


@pytest.mark.parametrize("count", [1, 2, 3, 8, 63, 64])
def test_up_to_64_everybody_is_everybodys_neighbour(count: int) -> None:
    graph = neighbours(names(count), SESSION, cohort=count)
    assert graph.keys() == set(names(count))
    for client, others in graph.items():
        assert list(others) == sorted(set(names(count)) - {client})
    assert degree(count) == count - 1


@pytest.mark.parametrize("count", [65, 66, 100, 256, 1000])
def test_above_64_a_ring_of_the_stated_degree(count: int) -> None:
    graph = neighbours(names(count), SESSION, cohort=count)
    assert graph.keys() == set(names(count))
    for client, others in graph.items():
        assert len(others) == len(set(others)) == degree(count) < count - 1
        assert client not in others and list(others) == sorted(others)
        assert all(client in graph[other] for other in others)
    assert degree(count) % 2 == 0
    assert len(reachable(graph)) == count


def test_the_designs_numbers() -> None:
    assert (degree(256), threshold(256)) == (36, 25)
    assert (degree(64), threshold(64)) == (63, 43)
    assert [threshold(count) for count in (3, 8, 10, 16)] == [3, 6, 7, 11]


@pytest.mark.parametrize("count", [*range(1, 66), 100, 128, 256, 1000, 10_000])
def test_more_than_half_of_the_holders_are_needed_and_no_more_than_there_are(count: int) -> None:
    """Two disjoint sets of holders could otherwise be asked for one kind of share each."""
    holders = degree(count) + 1
    assert holders / 2 < threshold(count) <= holders


@pytest.mark.parametrize(
    ("count", "most"),
    # By hand: 2 * 6 - 8 - 1, 2 * 11 - 16 - 1, 2 * 43 - 64 - 1. Of 65 clients 29 hold a secret and t is 20: five at each
    # end of an arc see too little, three of whom may be silent. Of 256 those are 37, 25, six and four.
    [(8, 3), (16, 5), (64, 21), (65, 3), (100, 3), (256, 3)],
)
def test_how_many_may_be_in_league_with_a_lying_server(count: int, most: int) -> None:
    assert tolerated(count) == most


@pytest.mark.parametrize("heard", [44, 50, 65])
def test_a_ring_is_as_wide_as_was_planned_however_few_are_heard(heard: int) -> None:
    """A server may leave clients out, and must not thin the graph by it, nor fill it up to a complete one."""
    graph = neighbours(names(heard), SESSION, cohort=65)
    assert {len(others) for others in graph.values()} == {28}


def test_a_ring_of_a_client_is_its_nearest_on_both_sides() -> None:
    """Harary: two clients so many places apart on the circle have 2 * side - 1 - apart neighbours in common."""
    graph = neighbours(names(100), SESSION, cohort=100)
    side = degree(100) // 2
    shared = Counter(len(set(graph[one]) & set(graph[two])) for one in graph for two in graph[one] if one < two)
    assert shared == {2 * side - 1 - apart: 100 for apart in range(1, side + 1)}


def test_the_ring_stays_connected_when_every_third_drops_out() -> None:
    graph = neighbours(names(256), SESSION, cohort=256)
    dropped = frozenset(np.random.default_rng(0).choice(names(256), 85, replace=False).tolist())
    assert reachable(graph, dropped) == set(names(256)) - dropped


@pytest.mark.parametrize("count", [10, 64, 65, 256])
def test_the_graph_does_not_depend_on_the_order_of_the_list(count: int) -> None:
    """Clients and server keep the names in orders of their own."""
    given = names(count)
    shuffled = np.random.default_rng(1).permutation(given).tolist()
    assert (
        neighbours(given, SESSION, cohort=count)
        == neighbours(shuffled, SESSION, cohort=count)
        == neighbours(given[::-1], SESSION, cohort=count)
    )


def test_the_ring_depends_on_every_byte_of_the_session() -> None:
    reference = neighbours(names(100), SESSION, cohort=100)
    for place in (0, 15, 31):
        session = bytearray(SESSION)
        session[place] ^= 1
        assert neighbours(names(100), bytes(session), cohort=100) != reference


def test_no_client_can_count_on_another_as_its_neighbour() -> None:
    """Over many sessions each of the others is a neighbour equally often: 28 of 64."""
    count, rounds = 65, 400
    seen = Counter(
        other
        for number in range(rounds)
        for other in neighbours(names(count), hashlib.sha256(number.to_bytes(4, "big")).digest(), cohort=count)["s0"]
    )
    rate = degree(count) / (count - 1)
    deviation = (rounds * rate * (1 - rate)) ** 0.5
    assert len(seen) == count - 1
    assert all(abs(times - rounds * rate) < 4.5 * deviation for times in seen.values())
