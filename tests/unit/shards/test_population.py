"""Virtual clients: what they hold, and how it is dealt."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.client_settings import PopulationConfig
from fedtalk_ray.errors import ShardError
from fedtalk_ray.shards.format import ClipEntry, Manifest
from fedtalk_ray.shards.population import Population

CASES = int(os.environ.get("FEDTALK_CASES", "25"))


def uneven(sizes: dict[str, int], val: bool = True) -> Manifest:
    """Identities of so many training clips of one piece of 100 frames, and one held out each, or none."""
    held_out = [ClipEntry("v", "val", 75, 1)] if val else []
    clips = {
        name: [ClipEntry(f"c{k}", "train", 100, 1) for k in range(count)] + held_out for name, count in sizes.items()
    }
    return Manifest("grid", 64, 25, 16_000, "patch", "f", {}, clips)


def manifest(identities: int, clips: int = 12) -> Manifest:
    return uneven({f"s{k}": clips for k in range(identities)})


def test_without_virtual_clients_every_identity_is_one() -> None:
    people = Population(manifest(3), PopulationConfig())
    assert list(people) == ["s0", "s1", "s2"] and "s1" in people and "s9" not in people
    (portion,) = people.portions("s1")
    assert portion.identity == "s1" and portion.pieces is None and people.frames("s1") == 1200
    assert list(Population(manifest(3), PopulationConfig(), identities=["s2"])) == ["s2"]


@settings(max_examples=CASES, deadline=None)
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
        people = Population(uneven({"s0": 1000}), PopulationConfig(clients=20, dirichlet=dirichlet))
        sizes = [people.frames(client) for client in people]
        assert sum(sizes) == 100_000
        return float(np.std(sizes) / np.mean(sizes))

    # Shares of Dirichlet(a) over n have deviation / mean = sqrt((n - 1) / (n a + 1)): 3.08, 0.31, and none.
    assert spread(None) < 0.02 and 0.2 < spread(10.0) < 0.45 and 1.5 < spread(0.1) < 4.4


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ShardError, match=r"client 'bob' is not in the population \(client0000000 to client0000004\)"):
        Population(manifest(2), PopulationConfig(clients=5)).portions("bob")
    with pytest.raises(ShardError, match="identities_per_client is 3, and the shards hold 2"):
        Population(manifest(2), PopulationConfig(clients=5, identities_per_client=3))
    with pytest.raises(ShardError, match="hold no client"):
        Population(manifest(0), PopulationConfig())
    with pytest.raises(ValueError, match="`clients`, `pieces_per_client` and `pooled`"):
        PopulationConfig(clients=5, pooled=True)
    with pytest.raises(IndexError):
        Population(manifest(2), PopulationConfig())[2]


def held(people: Population, client: str) -> set[tuple[str, int]]:
    """(identity, piece) of all that a client trains on."""
    return {
        (portion.identity, piece)
        for portion in people.portions(client)
        for piece in (portion.pieces or range(people.manifest.pieces(portion.identity, "train")))
    }


def test_who_has_many_pieces_is_several_clients_and_who_has_few_stays_one() -> None:
    """Of at most four pieces: 4 are one client, 5 are two of 3 and 2, 9 three of 3."""
    people = Population(uneven({"a": 4, "b": 5, "c": 9}), PopulationConfig(pieces_per_client=4))
    assert list(people) == ["a", "b.001", "b.002", "c.001", "c.002", "c.003"] and len(people) == 6
    assert [people.frames(client) for client in people] == [400, 300, 200, 300, 300, 300]
    assert people.portions("a")[0].pieces is None and people.portions("b.001")[0].pieces == {0, 2, 4}
    assert "b" not in people and "b.003" not in people and "c.003" in people and people.partial


def test_all_parts_of_an_identity_are_found_and_judged_by_its_held_out_clips() -> None:
    people = Population(uneven({"a": 2, "b": 5}), PopulationConfig(pieces_per_client=2))
    assert list(people.holders("b")) == ["b.001", "b.002", "b.003"] and list(people.holders("a")) == ["a"]
    assert list(people.holders("nobody")) == []
    for client in people.holders("b"):
        (portion,) = people.held_out(client)
        assert (portion.identity, portion.split, portion.pieces) == ("b", "val", None)


def test_a_pooled_client_holds_what_everybody_has() -> None:
    """Also of people who could not be clients: c keeps no clip to judge by, and d has nothing but one."""
    manifest = uneven({"a": 4, "b": 5})
    manifest.identities["c"] = [ClipEntry("c0", "train", 100, 1)]
    manifest.identities["d"] = [ClipEntry("v", "val", 75, 1)]
    manifest.identities["e"] = [ClipEntry("t", "test", 75, 1)]
    people = Population(manifest, PopulationConfig(pooled=True))
    assert list(people) == ["everybody"] and len(people) == 1 and people.frames("everybody") == 1000
    assert held(people, "everybody") == {
        (name, n) for name, count in (("a", 4), ("b", 5), ("c", 1)) for n in range(count)
    }
    kept = people.held_out("everybody")
    assert [(each.identity, each.split, each.pieces) for each in kept] == [(name, "val", None) for name in "abd"]
    assert list(people.holders("a")) == list(people.holders("c")) == ["everybody"] and list(people.holders("e")) == []
    assert "a" not in people and not people.partial


def test_a_dozenth_is_held_back_where_no_clip_was_held_out() -> None:
    """Of 30 pieces in a row the twelfth and the twenty-fourth: a has 0 to 9, b 10 to 19, c 20 to 29."""
    people = Population(uneven({"a": 10, "b": 10, "c": 10}, val=False), PopulationConfig(pooled=True))
    kept = {(each.identity, piece) for each in people.held_out("everybody") for piece in each.pieces or ()}
    assert kept == {("b", 1), ("c", 3)} and all(each.split == "train" for each in people.held_out("everybody"))
    trained = {(each.identity, piece) for each in people.portions("everybody") for piece in each.pieces or ()}
    assert not trained & kept and len(trained) == 28 and people.frames("everybody") == 2800
    few = Population(uneven({"a": 6, "b": 5}, val=False), PopulationConfig(pooled=True))
    assert few.held_out("everybody") == () and few.frames("everybody") == 1100


@pytest.mark.parametrize("other", ["b.002", "a.002"])
def test_a_part_of_somebody_cannot_take_anothers_name(other: str) -> None:
    """Whichever of the two comes first in order, and nobody is lost without a word."""
    with pytest.raises(ShardError, match=rf"{other} is an identity of the shards, and would be a part of {other[0]}"):
        Population(uneven({"a": 5, "b": 5, other: 1}), PopulationConfig(pieces_per_client=3))
