"""Virtual clients: what they hold, how it is dealt, and what a large population costs to open."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.client_settings import PopulationConfig
from fedtalk_ray.config import save_config
from fedtalk_ray.errors import ShardError
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.shards.format import ClipEntry, Manifest
from fedtalk_ray.shards.people import People, people_of, speakers
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
    started = time.process_time()
    people = Population(manifest(16), PopulationConfig(clients=1_000_000))
    assert len(people) == 1_000_000 and people[-1] == "client0999999"
    assert people.frames(people[765_432]) == 100
    assert time.process_time() - started < 2
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


def uneven(sizes: dict[str, int], val: bool = True, pieces: int = 1) -> Manifest:
    """Identities of so many training clips of 100 frames a piece, and one held out each, or none."""
    held_out = [ClipEntry("v", "val", 75, 1)] if val else []
    clips = {
        name: [ClipEntry(f"c{k}", "train", 100 * pieces, pieces) for k in range(count)] + held_out
        for name, count in sizes.items()
    }
    return Manifest("grid", 64, 25, 16_000, "patch", "f", {}, clips)


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


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), most=st.integers(1, 9), pieces=st.integers(1, 3))
def test_parts_of_an_identity_are_disjoint_complete_and_as_equal_as_can_be(
    sizes: list[int], most: int, pieces: int
) -> None:
    manifest = uneven({f"s{k}": size for k, size in enumerate(sizes)}, pieces=pieces)
    people = Population(manifest, PopulationConfig(pieces_per_client=most))
    parts = [held(people, client) for client in people]
    dealt = [piece for part in parts for piece in part]
    assert sorted(dealt) == [(f"s{k}", n) for k, size in enumerate(sizes) for n in range(size * pieces)]
    assert all(1 <= len(part) <= most for part in parts)
    for k, size in enumerate(sizes):
        own = [len(part) for part in parts if {name for name, _ in part} == {f"s{k}"}]
        assert max(own) - min(own) <= 1 and len(own) == -(-size * pieces // most), "as few clients as it takes"


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


def test_fewer_than_a_dozen_pieces_can_spare_none() -> None:
    people = Population(uneven({"a": 6, "b": 5}, val=False), PopulationConfig(pooled=True))
    assert people.held_out("everybody") == () and people.frames("everybody") == 1100


@pytest.mark.parametrize(
    "ways",
    [
        {"clients": 5, "pooled": True},
        {"clients": 5, "pieces_per_client": 2},
        {"pieces_per_client": 2, "pooled": True},
        {"clients": 5, "pieces_per_client": 2, "pooled": True},
    ],
)
def test_of_three_ways_to_make_clients_one_is_taken(ways: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="`clients`, `pieces_per_client` and `pooled` are three ways to make clients"):
        PopulationConfig.model_validate(ways)
    for name, value in ways.items():
        PopulationConfig.model_validate({name: value})


@pytest.mark.parametrize("other", ["b.002", "a.002"])
def test_a_part_of_somebody_cannot_take_anothers_name(other: str) -> None:
    """Whichever of the two comes first in order, and nobody is lost without a word."""
    with pytest.raises(ShardError, match=rf"{other} is an identity of the shards, and would be a part of {other[0]}"):
        Population(uneven({"a": 5, "b": 5, other: 1}), PopulationConfig(pieces_per_client=3))


def test_who_was_personalised_speaks_with_the_adapter_of_her_name(
    tmp_path: Path, make_config: Callable, make_shards: Callable
) -> None:
    """Where a person is several clients, `personalize` writes one adapter, by the person's name."""
    make_shards(tmp_path / "shards", {"ann": [30] * 8, "bob": [30] * 8})
    config = make_config(
        run=str(tmp_path / "run"), shards=str(tmp_path / "shards"), population={"pieces_per_client": 2}
    )
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    save_config(config, run.config_file)
    clients = list(people_of(config).clients_of("ann"))
    assert "ann" not in clients and len(clients) > 1
    run.client(clients[1]).newest_adapter.mkdir(parents=True)
    assert speakers(run, personal=True)("ann") == clients[1]
    run.client("ann").newest_adapter.mkdir(parents=True)
    assert [speakers(run, personal)(name) for personal in (True, False) for name in ("ann", "bob")] == [
        "ann",
        None,
        None,
        None,
    ]


def test_who_is_several_clients_takes_turns(tmp_path: Path, make_config: Callable, make_shards: Callable) -> None:
    """So that what is asked of each of them is asked of a person's held-out clips once."""
    make_shards(tmp_path / "shards", {"ann": [30] * 8, "bob": [30] * 4})
    parts = make_config(shards=str(tmp_path / "shards"), population={"pieces_per_client": 2})
    people = people_of(parts)
    held = {identity: list(people.clients_of(identity)) for identity in ("ann", "bob")}
    assert len(held["ann"]) == 3 and len(held["bob"]) == 1
    assert [people.turn(name) for name in held["ann"]] == [(0, 3), (1, 3), (2, 3)]
    assert people.turn("bob") == people_of(make_config(shards=str(tmp_path / "shards"))).turn("ann") == (0, 1)
    assert People(tmp_path / "shards", people.manifest).turn("ann") == (0, 1)
