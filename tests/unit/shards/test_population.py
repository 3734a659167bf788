"""Virtual clients: what they hold, how it is dealt, and what a large population costs to open."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.errors import ShardError
from fedtalk_ray.settings import PopulationConfig
from fedtalk_ray.shards.format import ClipEntry, Manifest
from fedtalk_ray.shards.population import Population


def manifest(identities: int, clips: int = 12, pieces: int = 1) -> Manifest:
    """Each identity has `clips` clips to train on of 100 frames a piece, one held out."""
    entries = [ClipEntry(f"c{k}", "train", 100 * pieces, pieces) for k in range(clips)] + [ClipEntry("v", "val", 75, 1)]
    return Manifest("grid", 64, 25, 16_000, "patch", "f", {}, {f"s{k}": list(entries) for k in range(identities)})


def test_without_virtual_clients_every_identity_is_one() -> None:
    people = Population(manifest(3), PopulationConfig())
    assert list(people) == ["s0", "s1", "s2"] and "s1" in people and "s9" not in people
    (portion,) = people.portions("s1")
    assert portion.identity == "s1" and portion.pieces is None and people.frames("s1") == 1200
    assert list(Population(manifest(3), PopulationConfig(), identities=["s2"])) == ["s2"]


@settings(max_examples=60, deadline=None)
@given(
    identities=st.integers(1, 5),
    clips=st.integers(1, 12),
    clients=st.integers(1, 40),
    held=st.integers(1, 3),
    dirichlet=st.sampled_from([None, 0.1, 10.0]),
    seed=st.integers(0, 3),
)
def test_pieces_are_dealt_whole_without_overlap_while_there_are_enough(
    identities: int, clips: int, clients: int, held: int, dirichlet: float | None, seed: int
) -> None:
    config = PopulationConfig(clients=clients, identities_per_client=min(held, identities), dirichlet=dirichlet)
    people = Population(manifest(identities, clips), config, seed)
    dealt: dict[str, list[frozenset[int]]] = {}
    for client in people:
        portions = people.portions(client)
        assert len({portion.identity for portion in portions}) == config.identities_per_client
        for portion in portions:
            assert portion.pieces
            dealt.setdefault(portion.identity, []).append(portion.pieces)
        assert people.frames(client) == 100 * sum(len(portion.pieces or ()) for portion in portions)
    shares = [len(parts) for parts in dealt.values()]
    if clients * config.identities_per_client >= identities:
        assert max(shares) - min(shares) <= 1, "identities are shared out evenly"
    for parts in dealt.values():
        held_pieces = [piece for part in parts for piece in part]
        if len(parts) <= clips:
            assert sorted(held_pieces) == list(range(clips)), "dealt whole, and to one client each"
        else:
            assert set(held_pieces) == set(range(clips)) and all(len(part) == 1 for part in parts)


def test_a_small_concentration_makes_sizes_unequal() -> None:
    def spread(dirichlet: float | None) -> float:
        people = Population(manifest(1, clips=1000), PopulationConfig(clients=20, dirichlet=dirichlet))
        sizes = [people.frames(client) for client in people]
        assert sum(sizes) == 100_000
        return float(np.std(sizes) / np.mean(sizes))

    # Shares of Dirichlet(a) over n have deviation / mean = sqrt((n - 1) / (n a + 1)): 3.08, 0.31, and none.
    assert spread(None) < 0.02 and 0.2 < spread(10.0) < 0.45 and 1.5 < spread(0.1) < 4.4


def test_pieces_of_long_clips_are_counted_by_their_frames() -> None:
    people = Population(manifest(1, clips=1, pieces=3), PopulationConfig(clients=3))
    assert [people.frames(client) for client in people] == [100, 100, 100]


def test_a_large_population_opens_at_once() -> None:
    started = time.monotonic()
    people = Population(manifest(16), PopulationConfig(clients=1_000_000))
    assert len(people) == 1_000_000 and people[-1] == "client0999999"
    assert people.frames(people[765_432]) == 100
    assert time.monotonic() - started < 2
    assert "client1000000" not in people and "client12" not in people and "s1" not in people


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ShardError, match=r"client 'bob' is not in the population \(client0000000 to client0000004\)"):
        Population(manifest(2), PopulationConfig(clients=5)).portions("bob")
    with pytest.raises(ShardError, match="identities_per_client is 3, and the shards hold 2"):
        Population(manifest(2), PopulationConfig(clients=5, identities_per_client=3))
    with pytest.raises(ShardError, match="hold no client"):
        Population(manifest(0), PopulationConfig())
    with pytest.raises(IndexError):
        Population(manifest(2), PopulationConfig())[2]
