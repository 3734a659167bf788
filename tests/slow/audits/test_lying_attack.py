"""The attack of a server that lies: sound clients stand it, and every rule of theirs that is taken out is named."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fedtalk_ray.audits.attack import Outcome, Round
from fedtalk_ray.audits.attacks import lying_server
from fedtalk_ray.audits.attacks.lying_server import attack
from fedtalk_ray.audits.effort import FAST
from fedtalk_ray.federation import secure_aggregator
from fedtalk_ray.privacy import client_record, secure_client, update_codec
from fedtalk_ray.privacy.client_ledger import ClientLedger
from fedtalk_ray.privacy.client_record import Answered, ClientRecord
from fedtalk_ray.privacy.graph import threshold
from fedtalk_ray.privacy.protocol import Aborted, Code
from fedtalk_ray.privacy.secure_client import SecureClient
from fedtalk_ray.training import secure_clients
from tests.unit.audits.conftest import DRAWN, LARGE

Make = Callable[..., Round]
Patch = Callable[[pytest.MonkeyPatch], None]

N = LARGE
"""Clients of a cohort that is lied to; 17 of them are the fewest that a sum is over."""


def audit(audited: Round) -> Outcome:
    return attack(SimpleNamespace(round=audited), FAST)


def figures(outcome: Outcome) -> dict[str, float]:
    return {figure.name: figure.value for figure in outcome.figures}


def test_sound_clients_go_along_with_no_lie(make_round: Make) -> None:
    outcome = audit(make_round())
    assert outcome.failures() == []
    found = figures(outcome)
    assert found["lies that clients go along with"] == 0
    assert found["average that one bad client makes, in clip norms, at most"] <= 1


def test_sound_clients_on_a_sparse_graph_go_along_with_no_lie(sparse: Round) -> None:
    assert audit(sparse).failures() == []


def test_with_noise_no_client_is_bad(few: Round, make_round: Make, skellam: dict[str, Any]) -> None:
    """A vector of its own making is then within the account only as far as the client's own code clips it."""
    outcome = audit(make_round(5, privacy=skellam["privacy"] | {"insecure_min_survivors": 3, "participation_cap": 1}))
    assert outcome.failures() == [] and list(figures(outcome)) == ["lies that clients go along with"]


def test_under_plain_aggregation_nothing_is_promised(make_round: Make) -> None:
    outcome = audit(make_round(aggregation="plain"))
    assert outcome.failures() == [] and "it need not lie" in outcome.notes[0]


# Planted bugs.


def limits_by_who_advertised(patch: pytest.MonkeyPatch) -> None:
    """S1: threshold and floor follow from who is said to be there."""
    read = SecureClient._read_keys

    def mutant(self: Any, advertisements: tuple[bytes, ...]) -> Any:
        keys = read(self, advertisements)
        self._cohort = set(keys)
        return keys

    patch.setattr(SecureClient, "_read_keys", mutant)


def threshold_by_who_is_there(patch: pytest.MonkeyPatch) -> None:
    """Of the holders who are there two thirds are enough."""
    deal = SecureClient._deal

    def mutant(self: Any, kind: str, secret: bytes, holders: set[str]) -> Any:
        limits, there = self._limits, threshold(len({*holders, self._name}))
        self._limits = SimpleNamespace(threshold=lambda cohort: there)
        try:
            return deal(self, kind, secret, holders)
        finally:
            self._limits = limits

    patch.setattr(SecureClient, "_deal", mutant)


def any_survivors(patch: pytest.MonkeyPatch) -> None:
    """The floor is looked at for who advertised alone."""
    confirm = SecureClient.confirm

    def mutant(self: Any, frame: bytes) -> bytes:
        self._limits = SimpleNamespace(survivors=lambda cohort: 1)
        return confirm(self, frame)

    patch.setattr(SecureClient, "confirm", mutant)


def no_confirmations(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(secure_client, "quorum", lambda cohort: 0)


def no_ledger(patch: pytest.MonkeyPatch) -> None:
    """The second book, which alone would stand against what follows."""
    patch.setattr(ClientLedger, "with_one_more", lambda *_: None)
    patch.setattr(ClientLedger, "charge", lambda self, run, number, before, **_: before + 1)


def nothing_was_answered(patch: pytest.MonkeyPatch) -> None:
    """S3: nobody looks whether a round has its masked update."""
    no_ledger(patch)
    for module in (client_record, secure_clients):
        patch.setattr(module, "answered_may_go_on", lambda *_: None)
    patch.setattr(ClientRecord, "train", lambda *_: None)


def by_the_exchange(patch: pytest.MonkeyPatch) -> None:
    """S3: what was answered goes by the exchange's number, which the server picks."""

    def mask(self: ClientRecord, round_number: int, charge: Any) -> None:
        answered = self.read()
        if answered.exchange <= answered.masked:
            raise Aborted(Code.OLD_ROUND)
        self._write(replace(answered, masked=answered.exchange))

    nothing_was_answered(patch)
    patch.setattr(ClientRecord, "mask", mask)


def when_it_joins_alone(patch: pytest.MonkeyPatch) -> None:
    """S3: who has joined two exchanges answers both."""
    no_ledger(patch)
    patch.setattr(client_record, "answered_may_go_on", lambda *_: None)


def remembered_in_memory(patch: pytest.MonkeyPatch) -> None:
    """S3: a client that was restarted knows nothing of what it answered."""
    no_ledger(patch)
    kept: dict[Any, Answered] = {}
    init = secure_clients.SecureClients.__init__

    def fresh(self: Any, *arguments: Any) -> None:
        kept.clear()
        init(self, *arguments)

    patch.setattr(secure_clients.SecureClients, "__init__", fresh)
    patch.setattr(ClientRecord, "read", lambda self: kept.get(self._path, Answered()))
    patch.setattr(ClientRecord, "_write", lambda self, answered: kept.update({self._path: answered}))


def without_a_bound(patch: pytest.MonkeyPatch) -> None:
    """S4: the sum of updates may be longer than that of the weights."""
    source, module = Path(update_codec.__file__).read_text(), ModuleType("altered")
    for old, new in (
        ("if np.linalg.norm(summed) > weight + rounded:", "if False:"),
        ("            summed *= min(1.0, weight / max(float(np.linalg.norm(summed)), weight))\n", ""),
    ):
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    patch.setitem(sys.modules, "altered", module)
    exec(compile(source, "altered", "exec"), vars(module))
    patch.setattr(secure_aggregator, "UpdateCodec", module.UpdateCodec)


PARTS = {"few_are_there", "asked_again", "one_neighbourhood", "holders_with_a_say", "check_bad_client"}
"""Of the attack: sound clients stand them all, and a planted bug is shown to the one that must see it."""
SEEN_BY = {"S1": "few_are_there", "S5": "few_are_there", "S3": "asked_again", "S4": "check_bad_client"}


def only(patch: pytest.MonkeyPatch, part: str) -> None:
    for other in PARTS - {part}:
        patch.setattr(lying_server, other, lambda *_: ())


PLANTED = {
    "S1: limits by who advertised": (
        limits_by_who_advertised,
        [
            f"clients go on where 8 of {N} are said to have advertised; 17 must have",
            f"clients go on where 16 of {N} are said to have advertised; 17 must have",
            f"a sum over 8 clients of {N} was opened; 17 are promised",
        ],
    ),
    "S1: threshold by who is there": (
        threshold_by_who_is_there,
        [f"clients go on where 8 of {N} are said to have dealt shares"],
    ),
    "S1: any survivors": (any_survivors, [f"clients go on where 8 of {N} are said to have sent masked updates"]),
    "S5: no confirmations": (
        no_confirmations,
        [f"clients go on where 16 of {N} are said to have confirmed the survivors"],
    ),
    "S3: nothing was answered": (
        nothing_was_answered,
        [
            "clients send a second masked update of a round that they answered before",
            "clients send a second masked update of a round that they answered before they were restarted",
            "clients send a second masked update of a round that is before one they answered",
            "clients send two masked updates of a round, in two exchanges at a time",
        ],
    ),
    "S3: by the exchange": (
        by_the_exchange,
        ["clients send a second masked update of a round that they answered before"],
    ),
    "S3: when it joins alone": (
        when_it_joins_alone,
        ["clients send two masked updates of a round, in two exchanges at a time"],
    ),
    "S3: in memory": (
        remembered_in_memory,
        ["clients send a second masked update of a round that they answered before they were restarted"],
    ),
    "S4: no bound": (
        without_a_bound,
        [
            "one bad client moves the average by more than the clip norm: 1.",
            "one bad client moves the average by more than the clip norm: 10 times, with a weight that takes",
        ],
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_named(make_round: Make, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    plant, says = PLANTED[bug]
    plant(monkeypatch)
    only(monkeypatch, SEEN_BY[bug[:2]])
    failures = audit(make_round()).failures()
    for line in says:
        assert [each for each in failures if each.startswith(f"lying_server: {line}")], failures


def one_arc(patch: pytest.MonkeyPatch) -> None:
    """S5: as many confirmations as open a secret are enough."""
    patch.setattr(secure_client, "quorum", lambda cohort: threshold(cohort, LARGE - 1))


def drawn_of_those_who_are_there(patch: pytest.MonkeyPatch) -> None:
    read = SecureClient._read_keys

    def mutant(self: Any, advertisements: tuple[bytes, ...]) -> Any:
        keys = read(self, advertisements)
        others = sorted(keys.keys() - {self._name})
        self._drawn = tuple(random.sample(others, min(DRAWN, len(others))))
        return keys

    patch.setattr(SecureClient, "_read_keys", mutant)


SPARSE = {
    "S5: one arc": (one_arc, "one_neighbourhood", "clients open their shares when one neighbourhood"),
    "S5: drawn of those who are there": (
        drawn_of_those_who_are_there,
        "holders_with_a_say",
        "clients draw their holders from those who are",
    ),
    "S1: any survivors": (
        any_survivors,
        "few_are_there",
        f"clients go on where 16 of {N} are said to have dealt shares",
    ),
}


@pytest.mark.parametrize(("plant", "part", "says"), SPARSE.values(), ids=SPARSE)
def test_a_planted_bug_on_a_sparse_graph_is_named(
    sparse: Round, monkeypatch: pytest.MonkeyPatch, plant: Patch, part: str, says: str
) -> None:
    plant(monkeypatch)
    only(monkeypatch, part)
    failures = audit(sparse).failures()
    assert [line for line in failures if line.startswith(f"lying_server: {says}")], failures


def test_clients_that_answer_nothing_prove_nothing(few: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecureClient, "share", lambda self, frame: self._enter("nothing"))
    failures = audit(few).failures()
    assert any("24 clients did not answer share before any lie, so nothing was tried" in line for line in failures)
    assert lying_server.LIED_TO == N
