"""The attack on the wire on a sparse graph: sound draws of holders stand it, and every planted rule is named."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any

import pytest

from fedtalk_ray.audits import holders
from fedtalk_ray.audits.attack import Round
from fedtalk_ray.audits.recorded_exchange import enlarged
from fedtalk_ray.privacy import protocol, secure_client
from fedtalk_ray.privacy.keys import digest
from fedtalk_ray.privacy.secure_client import SecureClient
from tests.slow.audits.test_server_saw import audit, figures, no_pairwise_masks, seeds_in_the_clear
from tests.unit.audits.conftest import DRAWN, LARGE

Patch = Callable[[pytest.MonkeyPatch], None]
Draw = Callable[[Collection[str], str], Collection[str]]


def test_a_sound_exchange_on_a_sparse_graph_stands_it(sparse: Round) -> None:
    outcome = audit(sparse)
    assert outcome.failures() == []
    found = figures(outcome)
    assert found["clients in the smallest part of the graph"] == LARGE
    assert found["holders that are drawn again in a second exchange"] == pytest.approx(DRAWN / (LARGE - 1), abs=0.15)
    # All of two exchanges, and of the third all but the one who leaves before it shares and the one before it masks.
    assert len(outcome.series["p values of masked bytes"]) == 3 * LARGE - 2


def test_a_guess_that_hits_one_clients_draw_by_chance_names_nothing(
    sparse: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4,648 guesses at each of six draws of eight of 23 did so in every eighteenth audit of a sound exchange."""
    monkeypatch.setattr(holders, "is_foretold", lambda view, owner, drawn: owner == min(view.holders))
    assert audit(sparse).failures() == []


def test_a_run_of_small_cohorts_is_attacked_on_its_complete_graph(few: Round) -> None:
    assert not [name for name in figures(audit(few)) if "holders" in name or "graph" in name]


def test_clients_that_are_made_up_are_as_many_as_are_missing(few: Round) -> None:
    few.updates["made-up-0"] = few.updates.pop("s0")
    few.weights["made-up-0"] = few.weights.pop("s0")
    larger = enlarged(few, 7)
    assert sorted(larger.updates) == ["made-up-0", "made-up-1", "made-up-2", "s1", "s2", "s3", "s4"]
    assert larger.updates["made-up-2"] is few.updates["s1"] and larger.weights["made-up-2"] == few.weights["s1"]
    assert enlarged(few, 5).updates == few.updates and len(few.updates) == 5


# Planted bugs.


def draws(draw: Draw) -> Patch:
    return lambda patch: patch.setattr(secure_client, "chosen", lambda cohort, name, most: tuple(draw(cohort, name)))


def others_of(cohort: Collection[str], name: str) -> list[str]:
    return sorted(set(cohort) - {name})


def favourites(cohort: Collection[str], name: str) -> list[str]:
    """Three of the server's liking for everybody, the others at random."""
    first = others_of(cohort, name)[:3]
    return first + random.sample(others_of(set(cohort) - set(first), name), DRAWN - 3)


def within_a_group(cohort: Collection[str], name: str) -> list[str]:
    """Of every other client, at random."""
    group = sorted(cohort)
    return random.sample(others_of(group[group.index(name) % 2 :: 2], name), DRAWN)


def one_too_few(cohort: Collection[str], name: str) -> list[str]:
    return random.sample(others_of(cohort, name), DRAWN - 1)


def drawn_of_the_session(patch: pytest.MonkeyPatch) -> None:
    """Drawn anew in every exchange, and the server draws along."""
    share = SecureClient.share

    def mutant(self: Any, frame: bytes) -> bytes:
        advertised = protocol.open_frame(frame, secure_client.Advertised, self._context, lambda _: self._roster.server)
        opened = [protocol.read_frame(data, secure_client.Advertisement)[1] for data in advertised.advertisements]
        keys = {each.client: (each.encryption_key, each.masking_key) for each in opened}
        draw = random.Random(digest(protocol.session_of(self._context, keys), self._name.encode()))
        self._drawn = draw.sample(others_of(self._cohort, self._name), DRAWN)
        return share(self, frame)

    patch.setattr(SecureClient, "share", mutant)


def seeds_for_all_holders(patch: pytest.MonkeyPatch) -> None:
    """Those too with whom the client does not mask, as they left."""
    deal = SecureClient._deal

    def mutant(self: Any, kind: str, secret: bytes, holders: set[str]) -> Any:
        return deal(self, kind, secret, self._holders)

    patch.setattr(SecureClient, "_deal", mutant)


def seeds_for_everybody(patch: pytest.MonkeyPatch) -> None:
    deal = SecureClient._deal

    def mutant(self: Any, kind: str, secret: bytes, holders: set[str]) -> Any:
        return deal(self, kind, secret, self._partners if kind == "seed" else holders)

    patch.setattr(SecureClient, "_deal", mutant)


PLANTED = {
    "the next by name": (draws(lambda cohort, name: others_of(cohort, name)[-DRAWN:]), "holders can be foretold"),
    "of the name": (
        draws(lambda cohort, name: random.Random(name).sample(others_of(cohort, name), DRAWN)),
        "holders can be foretold: clients draw the same in two exchanges",
    ),
    "of the session": (drawn_of_the_session, "holders can be foretold: the draw is made from what the server knows"),
    "favourites": (draws(favourites), "some clients are drawn as holders more often than others"),
    "groups": (draws(within_a_group), f"the graph of masks falls apart: a sum over {LARGE // 2} clients"),
    "one too few": (draws(one_too_few), f"shares of a key were dealt to another number of holders than {DRAWN}"),
    "seeds for all holders": (seeds_for_all_holders, "shares of a seed were dealt to holders with whom its owner does"),
    "seeds for everybody": (seeds_for_everybody, "shares of a seed were dealt to others than the holders of the key"),
    "no pairwise masks": (no_pairwise_masks, "nothing hides a vector when its self mask is off"),
    "seed in the clear": (seeds_in_the_clear, "the mask seed is known to the server: it was sent in the clear"),
}


@pytest.mark.parametrize(("plant", "says"), PLANTED.values(), ids=PLANTED)
def test_a_planted_bug_on_a_sparse_graph_is_named(
    sparse: Round, monkeypatch: pytest.MonkeyPatch, plant: Patch, says: str
) -> None:
    plant(monkeypatch)
    failures = audit(sparse).failures()
    assert [line for line in failures if line.startswith(f"server_saw: {says}")], failures
