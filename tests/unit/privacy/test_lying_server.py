"""What a lying server opens with clients of its own: no sum of fewer than the planned cohort's floor, up to so many.

Attacks succeed against the protocol with a rule taken out and fail against it as it is; one shows where the ring ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtalk_ray.messages import Plan
from fedtalk_ray.privacy import graph, secure_client
from fedtalk_ray.privacy.protocol import Limits
from fedtalk_ray.privacy.secure_client import SecureClient
from tests.unit.privacy.conftest import people_of
from tests.unit.privacy.conspiracy import Conspiracy, Late, Story

CASES = int(os.environ.get("FEDTALK_CASES", "200")) // 2

RING = 24
"""Where these tests let the ring begin, so that rings of thirty can be tried."""

crowd = cache(people_of)

Deviation = Callable[[Conspiracy], Story]


def conspiracy(
    count: int,
    colluders: int | frozenset[str],
    *,
    ring: bool = False,
    client: type[SecureClient] = SecureClient,
) -> Conspiracy:
    """colluders: who is the server's, or how many, the last ones by name."""
    people = crowd(count)
    plan = Plan("run", 1, 1, bytes(32), bytes(32), bytes(32), 1.0, people.names)
    limits = Limits(8, RING) if ring else Limits(8)
    if isinstance(colluders, int):
        colluders = frozenset(people.names[count - colluders :])
    return Conspiracy(people, plan, limits, colluders, client)


def alone(company: int) -> Deviation:
    """The first client, and so many other honest ones, hear of nobody else but the server's clients."""

    def story(league: Conspiracy) -> Story:
        few = league.honest[: 1 + company]
        return Story(heard=dict.fromkeys(few, frozenset(few) | league.colluders))

    return story


def two_stories(share: float) -> Deviation:
    """So large a share of the honest clients hears that all survived, the others that the first one did not."""

    def story(league: Conspiracy) -> Story:
        everybody, first = frozenset(league.plan.cohort), round(share * len(league.honest))
        without = everybody - {league.honest[0]}
        return Story(
            survivors={name: everybody if place < first else without for place, name in enumerate(league.honest)}
        )

    return story


def never_shared(league: Conspiracy) -> Story:
    """Nothing of the others reaches the first client, and all are said to have survived."""
    victim = league.honest[0]
    others = frozenset(league.honest[1:])
    return Story(withheld={victim: others}, survivors={victim: frozenset(league.plan.cohort)})


def said_to_be_lost(lost: int) -> Deviation:
    """So many honest clients are said to have dropped out, and their keys are asked for."""

    def story(league: Conspiracy) -> Story:
        left = frozenset(league.plan.cohort) - frozenset(league.honest[len(league.honest) - lost :])
        return Story(survivors=dict.fromkeys(league.honest, left))

    return story


def others_than_confirmed(lost: int) -> Deviation:
    """All confirm that all survived; then so many honest ones are said to have dropped out."""

    def story(league: Conspiracy) -> Story:
        return Story(named=said_to_be_lost(lost)(league).survivors)

    return story


def a_story_for_each(league: Conspiracy) -> Story:
    """Every client hears that others are lost, as many as a sum allows, so that all but a few lose their keys."""
    everybody, honest = frozenset(league.plan.cohort), league.honest
    least = league.limits.survivors(len(everybody))
    kept = honest[: least - len(league.colluders) - 1]
    lost = [name for name in honest if name not in kept]

    def survivors(name: str) -> frozenset[str]:
        begin = honest.index(name)
        turned = [lost[(begin + step) % len(lost)] for step in range(len(lost))]
        return everybody - frozenset([each for each in turned if each != name][: len(everybody) - least])

    return Story(survivors=Late(survivors))


def both_of_one(league: Conspiracy) -> Story:
    """Everybody survived, and the first client's key is asked for beside its seed."""
    return Story(asked=dict.fromkeys(league.honest, frozenset({league.honest[0]})))


def altered(*changes: tuple[str, str]) -> type[SecureClient]:
    """The client's code with some rules taken out or put back as they were."""
    path = Path(secure_client.__file__)
    source = path.read_text()
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    module = ModuleType("altered")
    exec(compile(source, str(path), "exec"), vars(module))
    found: type[SecureClient] = module.SecureClient
    return found


@pytest.mark.parametrize(("count", "ring"), [(8, False), (24, False), (64, False), (30, True)])
@pytest.mark.parametrize("colluders", [0, 2])
def test_an_exchange_without_lies_opens_the_sum_of_all(count: int, ring: bool, colluders: int) -> None:
    """A harness that could not open this would find every lie harmless."""
    league = conspiracy(count, colluders, ring=ring).run(Story())
    assert league.opened() == [frozenset(league.honest)]
    assert not league.too_small()


@pytest.mark.parametrize("count", [24, 36])
@pytest.mark.parametrize("company", [0, 3])
def test_a_cohort_does_not_shrink_to_a_victim_and_the_servers_own(count: int, company: int) -> None:
    """Seven helpers are enough for a floor of eight, whatever the cohort."""
    league = conspiracy(count, 7, ring=count > RING)
    assert not league.run(alone(company)(league)).too_small()
    assert not any(name in group for group in league.opened() for name in league.honest[: 1 + company])


ATTACKS: dict[str, tuple[int, int, bool, Deviation]] = {
    "a victim alone with the server's clients": (24, 7, False, alone(0)),
    "the same on the ring": (36, 3, True, alone(5)),
    "two stories about one client": (12, 5, False, two_stories(0.5)),
    "two stories, one of them for nearly all": (12, 5, False, two_stories(0.85)),
    "nothing of the others arrives": (12, 5, False, never_shared),
    "more are said to be lost than the floor allows": (8, 0, False, said_to_be_lost(2)),
    "most are said to be lost": (12, 3, False, said_to_be_lost(7)),
    "others than were confirmed": (8, 0, False, others_than_confirmed(2)),
    "a story for each": (24, 9, False, a_story_for_each),
    "both secrets of one client": (12, 5, False, both_of_one),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_lying_server_opens_no_small_sum(attack: str) -> None:
    count, colluders, ring, deviation = ATTACKS[attack]
    league = conspiracy(count, colluders, ring=ring)
    assert colluders <= graph.tolerated(count, league.limits.complete_up_to)
    assert not league.run(deviation(league)).too_small()


MUTANTS: dict[str, list[tuple[str, str]]] = {
    "limits by who is said to have advertised": [
        ("        planned, advertised =", "        self._cohort = set(self._keys)\n        planned, advertised =")
    ],
    "any number of shares will do": [("if len(self._held) < self._limits", "if 0 > self._limits")],
    "any number of survivors will do": [("if len(survivors) < self._limits", "if 0 > self._limits")],
    "no confirmation is needed": [("holders & survivors) < needed", "holders & survivors) < 0")],
    "another set of survivors than was confirmed": [("if survivors != self._survivors or", "if")],
    "a client may be both": [
        ("if survivors & dropped:", "if False:"),
        ("dropped & holders != (self._partners - survivors) & holders", "False"),
    ],
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_rule_that_is_missing_is_noticed(mutant: str) -> None:
    """At least one of the attacks opens a small sum where the clients lack it."""
    client = altered(*MUTANTS[mutant])
    for count, colluders, ring, deviation in ATTACKS.values():
        league = conspiracy(count, colluders, ring=ring, client=client)
        if league.run(deviation(league)).too_small():
            return
    pytest.fail("no attack saw it")


@st.composite
def leagues(draw: st.DrawFn) -> Conspiracy:
    """Mostly small cohorts, as every case makes everybody's keys; a ring now and then."""
    count = draw(st.sampled_from([8, 9, 10, 12, 8, 9, 10, 30]))
    most = graph.tolerated(count, RING)
    return conspiracy(count, draw(st.integers(0, most)), ring=count > RING)


@st.composite
def stories(draw: st.DrawFn, league: Conspiracy) -> Story:
    """A known attack, or the truth, with some clients told something else at some stages."""
    everybody = frozenset(league.plan.cohort)
    known = [deviation for _, _, ring, deviation in ATTACKS.values() if not ring]
    story = draw(st.sampled_from([lambda _: Story(), *known]))(league)
    some = st.frozensets(st.sampled_from(sorted(everybody)), max_size=4)
    told = {}
    for what in ("heard", "withheld", "survivors", "named", "asked"):
        said = getattr(story, what)
        if isinstance(said, Late):
            continue
        changed = dict(said)
        for name in draw(st.lists(st.sampled_from(league.honest), max_size=3, unique=True), label=what):
            usual = everybody if what in ("heard", "survivors", "named") else frozenset()
            changed[name] = changed.get(name, usual) ^ draw(some)
        told[what] = changed
    return replace(story, **told)


@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data(), league=leagues())
def test_no_deviation_opens_a_small_sum(data: st.DataObject, league: Conspiracy) -> None:
    assert not league.run(data.draw(stories(league))).too_small()


@pytest.fixture
def ground(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring in the order of names, as if the server could have it as it likes."""
    monkeypatch.setattr(graph, "order", lambda clients, session: sorted(clients))


def cut_out(league: Conspiracy, ends: tuple[int, int], silent: int, length: int) -> Story:
    """In the order of names: colluders, silent clients, an arc of honest ones, silent ones, colluders, and the rest.

    To the arc nothing comes from the rest, of whom it hears that those near it are lost; the rest hear that only the
    silent are. Holders on both sides open the silent clients' keys, and enough of the arc's holders confirm its story.
    """
    names = league.plan.cohort
    first = ends[0] + silent
    arc, rest = names[first : first + length], names[first + length + silent + ends[1] :]
    quiet = frozenset(names[ends[0] : first]) | frozenset(names[first + length : first + length + silent])
    side = graph.degree(len(names)) // 2
    near = frozenset(rest[: side - silent - ends[1]]) | frozenset(rest[len(rest) - (side - silent - ends[0]) :])
    everybody = frozenset(names)
    told = dict.fromkeys(arc, everybody - quiet - near) | dict.fromkeys(rest, everybody - quiet)
    return Story(withheld=dict.fromkeys(arc, frozenset(rest)), survivors=told | dict.fromkeys(quiet, everybody))


@pytest.mark.usefixtures("ground")
@pytest.mark.parametrize("ends", [(2, 2), (1, 2), (2, 1)])
def test_on_the_ring_four_of_the_servers_own_open_an_arc_and_three_do_not(ends: tuple[int, int]) -> None:
    """A hundred clients with 30 neighbours, of whose 31 holders 21 must speak: 34 lie open, where 67 are the fewest."""
    count, silent, length = 100, 3, 34
    assert graph.tolerated(count) == 3
    names = crowd(count).names
    last = ends[0] + 2 * silent + length
    league = conspiracy(count, frozenset([*names[: ends[0]], *names[last : last + ends[1]]]))
    small = league.run(cut_out(league, ends, silent, length)).too_small()
    first = ends[0] + silent
    assert small == ([frozenset(names[first : first + length])] if sum(ends) == 4 else [])
