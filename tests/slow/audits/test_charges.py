"""The attack on the account: rounds that nobody paid for are named, in a run's files and in exchanges that fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedtalk_ray.audits.attack import Outcome, Round
from fedtalk_ray.audits.attacks.charges import attack
from fedtalk_ray.audits.effort import FAST
from fedtalk_ray.federation.secure_aggregator import SecureAggregator, make_codec
from fedtalk_ray.privacy.ledger import Charge, Ledger
from fedtalk_ray.runs.folder import RunFolder

Make = Callable[..., Round]

ROUNDS = (1, 2, 3)


@pytest.fixture
def private(make_round: Make, skellam: dict[str, Any]) -> Round:
    """Five clients, of whom four must stay."""
    return make_round(5, privacy=skellam["privacy"] | {"insecure_min_survivors": 3}, rounds=3)


def audit(audited: Round, folder: Path) -> Outcome:
    return attack(SimpleNamespace(round=audited, run=RunFolder(folder)), FAST)


def figures(outcome: Outcome) -> dict[str, float]:
    return {figure.name: figure.value for figure in outcome.figures}


def write_run(folder: Path, audited: Round, charged: tuple[int, ...] = ROUNDS, **last: Any) -> list[dict[str, Any]]:
    """A run of three rounds, the second given up after its masked inputs. last: changes to the last record."""
    noise = make_codec(audited.config, len(audited.shared)).noise
    assert noise is not None
    (folder / "checkpoints").mkdir()
    ledger = Ledger(RunFolder(folder).ledger)
    for number in charged:
        ledger.charge(Charge(number, number, noise, 0.5, tuple(sorted(audited.updates))))
    records: list[dict[str, Any]] = []
    for number in ROUNDS:
        counts = {"cohort": 5, "trained": 5, "mask": 3 if number == 2 else 5}
        records.append({"round": number, "aggregation": audited.config.aggregation, "survivors": 5, "counts": counts})
    records[1] |= {"aborted": "too few", "survivors": 0}
    spent = ledger.spent(audited.config.privacy.delta)
    records[2] |= {"epsilon": spent.release, "epsilon_server": spent.server} | last
    (RunFolder(folder).history_file).write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def test_a_sound_run_has_paid_for_every_round(private: Round, tmp_path: Path) -> None:
    records = write_run(tmp_path, private)
    outcome = audit(private, tmp_path)
    assert outcome.failures() == [] and not outcome.notes
    found = figures(outcome)
    assert found["rounds of the run whose masked inputs arrived"] == found["rounds of the run that are charged"] == 3
    assert found["epsilon of the run recomputed, release view"] == pytest.approx(records[2]["epsilon"])
    assert found["epsilon of the run recomputed, server view"] == pytest.approx(records[2]["epsilon_server"])
    assert found["charges of an exchange with too few masked inputs"] == 1
    assert found["charges of an exchange with too few confirmations"] == 1
    assert found["charges of a round for which nobody came"] == 1
    assert found["weight of a client in a smaller sum over that in the whole"] == pytest.approx(1, abs=0.1)


def test_what_the_files_do_not_account_for_is_named(private: Round, tmp_path: Path) -> None:
    write_run(tmp_path, private, (1, 3), epsilon_server=0.5)
    failures = "\n".join(audit(private, tmp_path).failures())
    assert "charges: rounds whose masked inputs arrived are not charged: 2" in failures
    assert "charges: the history says epsilon_server 0.5" in failures


def test_a_ledger_that_was_tampered_with_is_named(private: Round, tmp_path: Path) -> None:
    write_run(tmp_path, private)
    path = tmp_path / "checkpoints" / "ledger.json"
    entries = json.loads(path.read_text())
    entries[0]["noise"]["multiplier"] = 2.0
    path.write_text(json.dumps([*entries, entries[1]]))
    failures = "\n".join(audit(private, tmp_path).failures())
    assert "charged for other noise than the configuration's: 1" in failures
    assert "exchanges are charged twice: 2" in failures
    path.write_text("[{}]")
    assert "is damaged" in audit(private, tmp_path).failures()[0]


def test_an_exchange_that_fails_and_is_not_charged_is_named(
    private: Round, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SecureAggregator, "_charge", lambda *_: None)
    failures = "\n".join(audit(private, tmp_path).failures())
    for what in ("too few masked inputs", "too few confirmations"):
        assert f"charges: an exchange with {what} was charged 0 times" in failures
