"""What a lying server learns from several exchanges together: no more than sums over as many as one may be over.

A client's record on disk stands against it, and that a slot answers what is on its list and nothing else: each such
rule is taken out once, and noticed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from fedtalk_ray.actors import slot
from fedtalk_ray.privacy import client_ledger, client_record, graph, secure_client
from fedtalk_ray.privacy.protocol import STAGES
from fedtalk_ray.training import secure_clients
from tests.unit.privacy.conftest import people_of
from tests.unit.privacy.conspiracy import Conspiracy, Story
from tests.unit.privacy.mutants import Change, remade
from tests.unit.privacy.several_exchanges import Act, League, Row, Rules, shortest, vectors_of
from tests.unit.privacy.stories import (
    Deviation,
    a_story_for_each,
    asked_again,
    changed,
    garbled,
    said_to_be_lost,
    truth,
    two_stories,
)

CASES = int(os.environ.get("FEDTALK_CASES", "300")) // 5

pytestmark = pytest.mark.usefixtures("same_frames_are_read_once", "no_power_is_cut")

crowd = cache(people_of)

Place = Callable[[], Path]


@pytest.fixture(scope="module")
def no_power_is_cut() -> Iterator[None]:
    """Nothing waits for a disk: what is killed here is slots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A new folder at every call."""
    folder, numbers = tmp_path_factory.mktemp("runs"), count()
    return lambda: folder / str(next(numbers))


HONEST = Rules()


@dataclass(frozen=True)
class Attack:
    """people: how many there are, of whom the last `colluders` by name are the server's. order: whose next stage is
    next, where exchanges go on side by side."""

    acts: tuple[Act, ...]
    colluders: int = 3
    people: int = 12
    order: tuple[int, ...] = ()

    def play(self, folder: Path, rules: Rules = HONEST) -> League:
        people = crowd(self.people)
        league = League(people, frozenset(people.names[self.people - self.colluders :]), folder, rules)
        return league.play(self.acts, self.order)


def without_the_first(league: Conspiracy) -> Story:
    """The first client is said to be lost."""
    return Story(survivors=dict.fromkeys(league.honest, frozenset(league.plan.cohort) - {league.honest[0]}))


def signed_for_each(league: Conspiracy) -> Story:
    """A story for each, and everybody is asked to sign each of them, as if signing were a stage."""
    return replace(a_story_for_each(league), signs=True)


def replayed(stage: str) -> Deviation:
    """Everybody is sent a frame of the exchange before."""
    return lambda league: Story(replayed=dict.fromkeys(league.honest, stage))


def stale(*stages: str) -> Deviation:
    """What the others said in the exchange before stands in what the server signs."""
    return lambda league: Story(stale=dict.fromkeys(stages, frozenset(league.honest[1:])))


SIDE_BY_SIDE = (0, 1) * 6

ATTACKS: dict[str, Attack] = {
    "a round again without one": Attack((Act(2, 1), Act(2, 2, without_the_first))),
    "the same after a restart": Attack((Act(2, 1), Act(2, 2, without_the_first, anew=True))),
    "the same after a later round": Attack((Act(2, 1), Act(3, 2), Act(2, 3, without_the_first))),
    "a round twice side by side": Attack((Act(2, 1), Act(2, 2, without_the_first, slot=1)), order=SIDE_BY_SIDE),
    "an exchange twice": Attack((Act(2, 1), Act(2, 1, without_the_first, slot=1)), order=SIDE_BY_SIDE),
    "an exchange after itself": Attack((Act(2, 1), Act(2, 1, without_the_first, slot=1))),
    "overlapping parts": Attack((Act(2, 1), Act(2, 2, left_out=frozenset({0})))),
    "overlapping parts side by side": Attack(
        (Act(2, 1), Act(2, 2, slot=1, left_out=frozenset({0}))), order=SIDE_BY_SIDE
    ),
    "statistics under another number": Attack((Act(1, 1, phase="units"), Act(2, 2, without_the_first, phase="units"))),
    "lost in a round and there in the next": Attack((Act(2, 1, without_the_first), Act(3, 2))),
    "there in a round and lost in the next": Attack((Act(2, 1), Act(3, 2, without_the_first))),
    "lost in two rounds": Attack((Act(2, 1, without_the_first), Act(3, 2, without_the_first))),
    "signatures on demand": Attack((Act(2, 1, signed_for_each),), colluders=9, people=24),
    "updates on demand": Attack((Act(2, 1, peeks=True),)),
}
REPLAYED = {stage: Attack((Act(2, 1), Act(3, 2, replayed(stage)))) for stage in STAGES[1:]}
STALE = {stage: Attack((Act(2, 1), Act(3, 2, stale(stage)))) for stage in STAGES[1:]}
ATTACKS |= {f"a frame of another exchange: {stage}": attack for stage, attack in REPLAYED.items()}
ATTACKS |= {f"parts of a frame of another exchange: {stage}": attack for stage, attack in STALE.items()}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_several_exchanges_open_no_small_sum(attack: Attack, place: Place) -> None:
    league = attack.play(place())
    assert attack.colluders <= graph.tolerated(attack.people)
    assert not league.too_small()
    assert not league.answered_twice()


@pytest.mark.parametrize("order", [(), SIDE_BY_SIDE])
def test_exchanges_without_lies_open_the_sums_of_all(order: tuple[int, ...], place: Place) -> None:
    """A harness that could not open these would find every lie harmless. Two halves of a cohort are two sums."""
    halves = Attack(
        (Act(2, 1, left_out=frozenset(range(8, 16))), Act(2, 2, slot=1, left_out=frozenset(range(8)))),
        colluders=0,
        people=16,
        order=order,
    )
    names = crowd(16).names
    assert halves.play(place()).opened() == [frozenset(names[:8]), frozenset(names[8:])]
    rounds = Attack((Act(2, 1), Act(3, 2, slot=1)), colluders=2, people=10, order=order).play(place())
    assert rounds.opened() == [frozenset(crowd(10).names[:8])], "of two rounds"
    assert len(rounds.answered) == 2 * 8 * 5 and not rounds.answered_twice()


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_frame_of_another_exchange_is_the_last_that_a_client_gets(stage: str, place: Place) -> None:
    league = REPLAYED[stage].play(place())
    names = league.began[1].honest
    for earlier in STAGES:
        sent = league.began[1].told.get((earlier, names[0])) == league.began[0].told.get((earlier, names[0]), b"")
        assert sent == (earlier == stage)
        answered = {name for name in names if league.answered[2, name, earlier]}
        assert answered == (set(names) if STAGES.index(earlier) < STAGES.index(stage) else set())


@pytest.mark.parametrize(("stage", "sums"), [("share", 1), ("mask", 2), ("confirm", 2), ("unmask", 2)])
def test_what_others_said_in_another_exchange_is_of_no_use(stage: str, sums: int, place: Place) -> None:
    """Old keys end the exchange; old shares and confirmations are passed over, and a dealer opens what is of no use."""
    league = STALE[stage].play(place())
    assert league.opened() == [frozenset(league.began[0].honest)]
    assert [len(each.masked) for each in league.began] == [9, 9 if sums == 2 else 0]
    assert len(league.open_vectors()) == sums


def equation(vectors: dict[str, int], masks: str = "") -> Row:
    return {("vector", name): times for name, times in vectors.items()} | {("mask", each): 1 for each in masks}


@pytest.mark.parametrize(
    ("rows", "fewest"),
    [
        ([equation({"a": 1, "b": 1}), equation({"a": 1, "b": 1, "c": 1})], [{"c": 1}]),
        # a + b and b + c and c + a tell each: half of what two of them are more than the third.
        ([equation({"a": 1, "b": 1}), equation({"b": 1, "c": 1}), equation({"c": 1, "a": 1})], [{"a": 1}]),
        # Only the first less the second is without masks, and then less the third without b.
        (
            [equation({"a": 1, "b": 1}, "mn"), equation({"c": 1}, "mn"), equation({"b": 1, "c": -1})],
            [{"a": 1, "c": 0}],
        ),
        ([equation({"a": 1}, "m"), equation({"b": 1}, "n")], []),
        # The sum of the two is over four, their difference over two.
        ([equation({"a": 1, "b": 1, "c": 1}), equation({"b": 1, "c": 1, "d": 1})], [{"a": 1, "d": -1}]),
    ],
)
def test_the_shortest_sums_are_found(rows: list[Row], fewest: list[dict[str, int]]) -> None:
    """By hand: what the equations tell of fewest vectors."""
    found = [vectors_of(row) for row in shortest(rows)]
    for wanted in fewest:
        few = {name: times for name, times in wanted.items() if times}
        assert few in found or {name: -times for name, times in few.items()} in found
    least = min((len(row) for row in found), default=0)
    assert least == min((len([each for each in row.values() if each]) for row in fewest), default=0)


RECORD, LEDGER, SIDE, CLIENTS, SLOT = client_record, client_ledger, secure_client, secure_clients, slot
KEPT = (SIDE, "_NONCE = bytes(12)\n", "_NONCE = bytes(12)\n_kept = {}\n")

FORGETS = (LEDGER, "if number <= spent.last.get(run, 0):", "if False:")
"""A client has two books, and each alone knows what it answered (`test_either_book_stands_alone`)."""

MUTANTS: dict[str, list[tuple[ModuleType, str, str]]] = {
    "S3: nobody remembers rounds": [(RECORD, "if round_number <= answered.masked:", "if False:"), FORGETS],
    "S3: rounds before the last one are forgotten": [
        (RECORD, "if round_number <= answered.masked:", "if round_number == answered.masked:"),
        (RECORD, "if round_number < last[0] or (", "if ("),
        (LEDGER, "if number <= spent.last.get(run, 0):", "if number == spent.last.get(run, 0):"),
    ],
    "S3: looked at when a client joins alone": [
        (RECORD, "            answered_may_go_on(answered, round_number)\n", ""),
        (
            LEDGER,
            "after = self.with_one_more(run, number, before, noise, agreement)",
            "after = self.read().and_one(run, number, noise)",
        ),
    ],
    "S3: by the exchange's number": [
        FORGETS,
        (CLIENTS, "answered_may_go_on(answered, plan.round)", "pass"),
        (RECORD, "if round_number <= answered.masked:", "if answered.exchange <= answered.masked:"),
        (RECORD, "replace(answered, masked=round_number,", "replace(answered, masked=answered.exchange,"),
    ],
    "S3: each slot has a record of its own": [
        (CLIENTS, "(client).protocol_state)", '(client).protocol_state.with_name(f"{id(self)}.json"))'),
        (CLIENTS, "(client).ledger,", '(client).ledger.with_name(f"{id(self)}-ledger.json"),'),
        (
            RECORD,
            "json.loads(read_own(self._path))",
            "json.loads(read_own(self._path)) if self._path.exists() else vars(Answered())",
        ),
    ],
    "S3: who has joined two exchanges answers both": [(RECORD, "if exchange <= answered.exchange:", "if False:")],
    "S3: exchanges are not counted": [
        (RECORD, "if exchange <= answered.exchange:", "if False:"),
        (SIDE, "if plan.exchange <= last_exchange:", "if False:"),
        (RECORD, "if round_number <= answered.masked:", "if False:"),
        FORGETS,
    ],
    "S3: statistics go by any number": [
        (CLIENTS, " or self._config.phase_at(plan.round).name != self._phase", ""),
    ],
    "S6: any method is a stage": [
        (CLIENTS, "if stage not in STAGES:", "if False:"),
        (CLIENTS, 'if STAGES.index(stage) > STAGES.index("mask"):', 'if stage in ("confirm", "unmask"):'),
    ],
    "S6: any method is a call": [(SLOT, "if method not in self._held.ASKED:", "if False:")],
    "keys are kept for the next exchange": [
        KEPT,
        (
            SIDE,
            "self._masking = ExchangeKey.generate(), ExchangeKey.generate()",
            "self._masking = _kept.setdefault(name, (ExchangeKey.generate(), ExchangeKey.generate()))",
        ),
    ],
    "a self mask is kept for the next exchange": [
        KEPT,
        (SIDE, "self._seed = os.urandom(KEY_BYTES)", "self._seed = _kept.setdefault(name, os.urandom(KEY_BYTES))"),
    ],
}

SEEN_BY = {
    "S3: nobody remembers rounds": ["a round again without one", "overlapping parts", "the same after a restart"],
    "S3: rounds before the last one are forgotten": ["the same after a later round"],
    "S3: looked at when a client joins alone": ["a round twice side by side", "overlapping parts side by side"],
    "S3: by the exchange's number": ["a round again without one"],
    "S3: each slot has a record of its own": ["the same after a restart"],
    "S3: exchanges are not counted": ["an exchange after itself"],
    "S3: statistics go by any number": ["statistics under another number"],
    "S6: any method is a stage": ["signatures on demand"],
    "S6: any method is a call": ["updates on demand"],
    "keys are kept for the next exchange": ["lost in a round and there in the next"],
    "a self mask is kept for the next exchange": ["there in a round and lost in the next", "lost in two rounds"],
}


def rules_without(mutant: str) -> Rules:
    return rules_with(MUTANTS[mutant])


def rules_with(mutant: list[tuple[ModuleType, str, str]]) -> Rules:
    def changes(module: ModuleType) -> list[Change]:
        return [(old, new) for where, old, new in mutant if where is module]

    record, ledger, side = (remade(module, *changes(module)) for module in (RECORD, LEDGER, SIDE))
    clients = remade(
        CLIENTS,
        *changes(CLIENTS),
        ClientRecord=record.ClientRecord,
        ClientLedger=ledger.ClientLedger,
        answered_may_go_on=record.answered_may_go_on,
        SecureClient=side.SecureClient,
        check_plan=side.check_plan,
    )
    return Rules(clients.SecureClients, remade(SLOT, *changes(SLOT)).SlotProcess)


@pytest.mark.parametrize(("mutant", "attack"), [(each, attack) for each in SEEN_BY for attack in SEEN_BY[each]])
def test_a_rule_that_is_missing_is_noticed(mutant: str, attack: str, place: Place) -> None:
    assert ATTACKS[attack].play(place(), rules_without(mutant)).too_small()


@pytest.mark.parametrize("attack", SEEN_BY["S3: nobody remembers rounds"])
@pytest.mark.parametrize("which", [0, 1], ids=["the ledger", "the record"])
def test_either_book_stands_alone(which: int, attack: str, place: Place) -> None:
    missing = [MUTANTS["S3: nobody remembers rounds"][which]]
    assert not ATTACKS[attack].play(place(), rules_with(missing)).too_small()


def test_an_exchange_that_is_answered_twice_is_noticed(place: Place) -> None:
    """It opens nothing by itself, as keys are fresh and a round is masked once."""
    league = ATTACKS["an exchange twice"].play(place(), rules_without("S3: who has joined two exchanges answers both"))
    assert league.answered_twice() and not league.too_small()


KNOWN: list[Deviation] = [truth, truth, without_the_first, two_stories(0.5), asked_again, garbled, said_to_be_lost(2)]
PARTS = [frozenset[int](), frozenset[int](), frozenset({0}), frozenset({1}), frozenset({0, 11})]


@st.composite
def attacks(draw: st.DrawFn) -> Attack:
    """Two or three exchanges, mostly over one round, of twelve people or nearly all of them, in any order."""
    data = draw(st.data())
    acts = []
    for place in range(draw(st.integers(2, 3))):
        story = draw(st.sampled_from(KNOWN))
        acts.append(
            Act(
                draw(st.sampled_from([2, 2, 2, 3])),
                draw(st.sampled_from([place + 1, place + 1, place + 1, place, 1])),
                partial(told, data, story) if draw(st.booleans()) else story,
                draw(st.sampled_from(PARTS)),
                slot=draw(st.sampled_from([place, place, 0])),
                anew=draw(st.booleans()),
                peeks=draw(st.booleans()),
            )
        )
    most = min(graph.tolerated(12 - len(act.left_out)) for act in acts)
    order = draw(st.lists(st.integers(0, len(acts) - 1), max_size=12))
    return Attack(tuple(acts), draw(st.integers(0, most)), 12, tuple(order))


def told(data: st.DataObject, known: Deviation, league: Conspiracy) -> Story:
    """A known attack or the truth, changed for some; or with things of the exchange before."""
    story = known(league)
    if data.draw(st.booleans(), label="changed"):
        return replace(changed(data, known, league), signs=data.draw(st.booleans(), label="signs"))
    stages = st.sampled_from(["share", "mask", "confirm", "unmask"])
    some = st.frozensets(st.sampled_from(league.honest), max_size=3)
    return replace(
        story,
        stale=data.draw(st.dictionaries(stages, some, max_size=2), label="stale"),
        replayed=data.draw(st.dictionaries(st.sampled_from(league.honest), stages, max_size=2), label="replayed"),
    )


GENERATED = settings(max_examples=CASES, deadline=None, suppress_health_check=[*HealthCheck])


@GENERATED
@given(attack=attacks())
def test_no_exchanges_together_open_a_small_sum(attack: Attack, place: Place) -> None:
    league = attack.play(place())
    assert not league.too_small()
    assert not league.answered_twice()


@pytest.mark.parametrize(
    "mutant", ["S3: nobody remembers rounds", "S3: looked at when a client joins alone", "S6: any method is a call"]
)
def test_what_is_generated_finds_a_rule_that_is_missing(mutant: str, place: Place) -> None:
    """Who generates exchanges that come to nothing finds every rule superfluous."""
    rules = rules_without(mutant)
    once = settings(GENERATED, max_examples=200, database=None, derandomize=True, phases=[Phase.generate])
    assert find(attacks(), lambda attack: bool(attack.play(place(), rules).too_small()), settings=once)
