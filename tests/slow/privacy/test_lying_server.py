"""What a lying server opens with clients of its own: no sum of fewer than the planned cohort's floor, up to so many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtalk_ray.messages import Plan
from fedtalk_ray.privacy import graph
from fedtalk_ray.privacy.protocol import Limits
from fedtalk_ray.privacy.secure_client import SecureClient
from tests.unit.privacy.conftest import people_of
from tests.unit.privacy.conspiracy import Conspiracy
from tests.unit.privacy.mutants import altered, read_rules
from tests.unit.privacy.stories import (
    Deviation,
    a_story_for_each,
    alone,
    asked_again,
    changed,
    garbled,
    hidden,
    holders_in_league,
    impostors,
    never_shared,
    said_to_be_lost,
    same_impostors,
    truth,
    two_stories,
)

CASES = int(os.environ.get("FEDTALK_CASES", "15"))

pytestmark = pytest.mark.usefixtures("same_frames_are_read_once")

COMPLETE_UP_TO = 24
"""Where these tests let sparse graphs begin, so that small ones can be tried."""

crowd = cache(people_of)


@dataclass(frozen=True)
class Attack:
    """count: clients, of whom the last `colluders` by name are the server's. drawn: holders each, 0 for all."""

    count: int
    colluders: int
    story: Deviation
    drawn: int = 0

    def play(self, client: type[SecureClient] = SecureClient) -> Conspiracy:
        """client: what the honest ones run."""
        with holders_each(self.drawn):
            league = conspiracy(self.count, self.colluders, sparse=self.drawn > 0, client=client)
            return league.run(self.story(league))


def conspiracy(
    count: int, colluders: int, *, sparse: bool = False, client: type[SecureClient] = SecureClient
) -> Conspiracy:
    people = crowd(count)
    plan = Plan("run", 1, 1, bytes(32), bytes(32), bytes(32), 1.0, people.names)
    limits = Limits(8, COMPLETE_UP_TO) if sparse else Limits(8)
    return Conspiracy(people, plan, limits, frozenset(people.names[count - colluders :]), client)


@contextmanager
def holders_each(drawn: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if drawn:
            patch.setattr(graph, "SPARSE", drawn)
        yield


@pytest.mark.parametrize(("count", "drawn"), [(8, 0), (30, 20)])
@pytest.mark.parametrize("colluders", [0, 2])
def test_an_exchange_without_lies_opens_the_sum_of_all(count: int, drawn: int, colluders: int) -> None:
    """A harness that could not open this would find every lie harmless."""
    league = Attack(count, colluders, truth, drawn).play()
    assert league.opened == [frozenset(league.honest)]
    assert not league.too_small()


@pytest.mark.parametrize(("count", "company"), [(24, 3), (30, 0)])
def test_a_cohort_does_not_shrink_to_a_victim_and_the_servers_own(count: int, company: int) -> None:
    """Seven helpers are enough for a floor of eight, whatever the cohort."""
    league = Attack(count, 7, alone(company), 20 if count > COMPLETE_UP_TO else 0).play()
    assert not league.too_small()
    assert not any(name in group for group in league.opened for name in league.honest[: 1 + company])


ATTACKS: dict[str, Attack] = {
    "a victim alone with the server's clients": Attack(24, 7, alone(0)),
    "the same on a sparse graph": Attack(30, 3, alone(5), 20),
    "two stories about one client": Attack(12, 5, two_stories(0.5)),
    "two stories, one of them for nearly all": Attack(12, 5, two_stories(0.85)),
    "two stories on a sparse graph": Attack(30, 3, two_stories(0.5), 20),
    "another story after the first": Attack(12, 5, asked_again),
    "nothing of the others arrives": Attack(12, 5, never_shared),
    "some are hidden from the others": Attack(8, 0, hidden(2)),
    "more are said to be lost than the floor allows": Attack(8, 0, said_to_be_lost(2)),
    "most are said to be lost": Attack(12, 3, said_to_be_lost(7)),
    "one is said to be lost": Attack(12, 3, said_to_be_lost(1)),
    "a story for each": Attack(24, 9, a_story_for_each),
    "complaints of shares that never came": Attack(12, 5, garbled),
    "round keys of all others are forged": Attack(12, 0, impostors),
    "round keys of half are forged, the same to all": Attack(12, 3, same_impostors(0.5)),
    "holders who are in league": Attack(60, 5, partial(holders_in_league, partners=True), 8),
    "masks with the server's alone": Attack(60, 5, partial(holders_in_league, partners=False), 8),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_lying_server_opens_no_small_sum(attack: Attack) -> None:
    assert attack.drawn == 8 or attack.colluders <= graph.tolerated(attack.count)
    assert not attack.play().too_small()


MUTANTS = read_rules(r"""
limits by who is said to have advertised | a victim alone with the server's clients
    planned, advertised = => self._cohort = set(self._keys)\n        planned, advertised =
as few holders as are there | masks with the server's alone
    if len(everybody) < threshold: => threshold = min(threshold, len(everybody))\n        if False:
holders who can be foretold | holders who are in league
    import chosen, quorum => import holders, quorum\nchosen = lambda a, b, c: sorted(a - {b})[-holders(len(a), c) :]
holders' keys that they have not signed | round keys of all others are forged
    self._check_keys(self._holders) => pass
confirmations that nobody has signed | a story for each
    protocol.open_frame(data, Consistency, self._context, self._key_of) => protocol.read_frame(data, Consistency)[1]
seeds for holders with whom it does not mask | nothing of the others arrives
    self._holders & self._partners) => self._holders)
survivors with whom it has not masked | some are hidden from the others
    self._survivors & self._holders - self._partners => False
any number of survivors will do | more are said to be lost than the floor allows
    if len(survivors) < self._limits => if 0 > self._limits
no confirmation is needed | a story for each
    if len(confirmed) < quorum => if 0 > quorum
confirmations of another set | a story for each
    if message.survivors == self._confirmed: => if message.survivors:
one confirmation counts twice | a story for each
    if len(confirmed) < quorum => if len(request.confirmations) < quorum
a stage may be asked for twice | another story after the first
    if stage != self._next: => if False:
    seeds, keys, opened))\n        self._forget() => seeds, keys, opened))
keys of survivors too | one is said to be lost
    if owner not in self._survivors\n => if True\n
seeds of those who did not survive | one is said to be lost
    if share.owner in self._survivors - {self._name} and => if
""")
"""The clients' rules, and the attack that opens a small sum where one is taken out."""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_rule_that_is_missing_is_noticed(mutant: str) -> None:
    attacks, changes = MUTANTS[mutant]
    assert ATTACKS[attacks[0]].play(altered(*changes)).too_small()


@pytest.mark.parametrize(("count", "drawn"), [(9, 0), (12, 0), (24, 0), (30, 20)])
def test_one_more_of_the_servers_own_is_too_many(count: int, drawn: int) -> None:
    """As many as may be, and two stories open nothing; one more, and they do. On sparse graphs it ends sooner."""
    enough = 2 * graph.quorum(count) - count
    with holders_each(drawn):
        most = graph.tolerated(count, COMPLETE_UP_TO if drawn else graph.COMPLETE_UP_TO)
    assert most == (3 if drawn else enough - 1)
    for share in (0.5, 0.85):
        assert not Attack(count, most, two_stories(share), drawn).play().too_small()
    one_too_many = Attack(count, enough, two_stories(0.5), drawn)
    assert any(one_too_many.play().too_small() for _ in range(20 if drawn else 1))


SMALL = [*(8, 9, 10) * 5, 12, 12, 30]
"""Clients of a cohort: mostly few; a sparse graph now and then."""


@st.composite
def attacks(draw: st.DrawFn, counts: list[int], complete_up_to: int) -> Attack:
    """complete_up_to: clients; larger cohorts have sparse graphs, of 20 holders each where they are below 100."""
    count = draw(st.sampled_from(counts))
    drawn = 20 if complete_up_to < count <= graph.COMPLETE_UP_TO else 0
    with holders_each(drawn):
        most = graph.tolerated(count, COMPLETE_UP_TO if drawn else graph.COMPLETE_UP_TO)
    known = [truth, *(attack.story for attack in ATTACKS.values())]
    data = draw(st.data())
    return Attack(count, draw(st.integers(0, most)), partial(changed, data, draw(st.sampled_from(known))), drawn)


@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(attack=attacks(SMALL, COMPLETE_UP_TO))
def test_no_deviation_opens_a_small_sum(attack: Attack) -> None:
    assert not attack.play().too_small()


@pytest.mark.nightly
@settings(
    max_examples=max(1, CASES // 500),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(attack=attacks([64, 100, 101, 128, 256], graph.COMPLETE_UP_TO))
def test_no_deviation_in_a_large_cohort_opens_a_small_sum(attack: Attack) -> None:
    assert not attack.play().too_small()
