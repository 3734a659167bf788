"""The attack of a server that lies: sound clients stand it, and every rule of theirs that is taken out is named."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fedtalk_ray.audits.attack import Outcome, Round
from fedtalk_ray.audits.attacks import lying_server
from fedtalk_ray.audits.attacks.lying_server import attack
from fedtalk_ray.audits.effort import FAST
from fedtalk_ray.privacy.secure_client import SecureClient

Make = Callable[..., Round]

N = 9
"""Clients of a cohort that is lied to; 7 of them are the fewest that a sum is over."""


@pytest.fixture
def nine(make_round: Make, monkeypatch: pytest.MonkeyPatch) -> Round:
    """No more than have to be lied to."""
    monkeypatch.setattr(lying_server, "LIED_TO", N)
    return make_round(privacy={"insecure_min_survivors": 3})


def audit(audited: Round) -> Outcome:
    return attack(SimpleNamespace(round=audited), FAST)


def test_sound_clients_go_along_with_no_lie(nine: Round) -> None:
    outcome = audit(nine)
    assert outcome.failures() == []
    found = {figure.name: figure.value for figure in outcome.figures}
    assert found["lies that clients go along with"] == 0
    assert found["average that one bad client makes, in clip norms, at most"] <= 1


def test_limits_by_who_is_said_to_be_there_are_named(nine: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    read = SecureClient._read_keys

    def mutant(self: Any, advertisements: tuple[bytes, ...]) -> Any:
        keys = read(self, advertisements)
        self._cohort = set(keys)
        return keys

    monkeypatch.setattr(SecureClient, "_read_keys", mutant)
    failures = audit(nine).failures()
    says = f"lying_server: clients go on where 3 of {N} are said to have advertised; 7 must have"
    assert [each for each in failures if each.startswith(says)], failures
