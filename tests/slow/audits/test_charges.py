"""The attack on the account: rounds that nobody paid for are named, in a run's files and in exchanges that fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedtalk_ray.audits.attack import Outcome, Round
from fedtalk_ray.audits.attacks.charges import attack
from fedtalk_ray.audits.effort import FAST
from fedtalk_ray.federation.secure_aggregator import SecureAggregator, make_codec
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.privacy.accounting import Rounds, epsilon
from fedtalk_ray.privacy.ledger import Charge, Ledger
from fedtalk_ray.privacy.update_codec import Averaged, UpdateCodec
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
    write_history(folder, records)
    return records


def write_history(folder: Path, records: list[dict[str, Any]]) -> None:
    (RunFolder(folder).history_file).write_text("".join(json.dumps(record) + "\n" for record in records))


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


def test_the_history_of_a_capped_run_agrees_with_its_ledger(
    make_round: Make, skellam: dict[str, Any], tmp_path: Path
) -> None:
    privacy = skellam["privacy"] | {"insecure_min_survivors": 3, "participation_cap": 1}
    audited = make_round(5, privacy=privacy, rounds=3)
    ledger, noise = Ledger(RunFolder(tmp_path).ledger), make_codec(audited.config, len(audited.shared)).noise
    assert noise is not None
    records = write_run(tmp_path, audited, ())
    for number in ROUNDS:
        ledger.charge(Charge(number, number, noise, 0.5, (f"c{number}",)))
    one = epsilon([Rounds(noise, 1.0, 1)], audited.config.privacy.delta)
    write_history(tmp_path, [*records[:2], records[2] | {"epsilon": one, "epsilon_server": one}])
    outcome = audit(audited, tmp_path)
    assert outcome.failures() == []
    assert figures(outcome)["epsilon of the run recomputed, release view"] == pytest.approx(one)


def test_a_run_without_files_is_looked_at_by_its_exchanges_alone(private: Round, tmp_path: Path) -> None:
    outcome = audit(private, tmp_path)
    assert outcome.failures() == [] and "no history" in outcome.notes[0]


def test_a_round_before_whose_masked_inputs_all_left_costs_nothing(private: Round, tmp_path: Path) -> None:
    records = write_run(tmp_path, private, (1, 3))
    records[1]["counts"] = {"cohort": 5, "trained": 5, "advertise": 2}
    write_history(tmp_path, records)
    assert audit(private, tmp_path).failures() == []


def test_a_round_that_was_skipped_is_to_be_charged(private: Round, tmp_path: Path) -> None:
    records = write_run(tmp_path, private, (1, 3))
    records[1]["counts"] = {"cohort": 2}
    write_history(tmp_path, records)
    (line,) = audit(private, tmp_path).failures()
    assert line == "charges: rounds that were skipped, as too few came, are not charged: 2"


@pytest.mark.parametrize(
    ("charged", "last", "says"),
    [
        ((1, 3), {}, "rounds whose masked inputs arrived are not charged: 2"),
        ((), {}, "rounds whose masked inputs arrived are not charged: 1, 2, 3"),
        (ROUNDS, {"epsilon": 0.5}, "the history says epsilon 0.5, and the ledger's charges cost"),
        (ROUNDS, {"epsilon_server": 0.5}, "the history says epsilon_server 0.5"),
    ],
)
def test_what_the_files_do_not_account_for_is_named(
    private: Round, tmp_path: Path, charged: tuple[int, ...], last: dict[str, float], says: str
) -> None:
    write_run(tmp_path, private, charged, **last)
    assert any(line.startswith(f"charges: {says}") for line in audit(private, tmp_path).failures())


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


def test_a_budget_that_is_overspent_is_named(make_round: Make, skellam: dict[str, Any], tmp_path: Path) -> None:
    audited = make_round(5, privacy=skellam["privacy"] | {"insecure_min_survivors": 3, "epsilon": 1.0})
    write_run(tmp_path, audited)
    assert any("of a budget of 1" in line for line in audit(audited, tmp_path).failures())


def charged_when_decoded(patch: pytest.MonkeyPatch) -> None:
    """The budget is not charged on a round that is given up."""
    charge, decoded = SecureAggregator._charge, SecureAggregator.decoded
    kept: list[Any] = []

    def late(self: SecureAggregator, round_number: int) -> Any:
        averaged = decoded(self, round_number)
        charge(self, kept.pop())
        return averaged

    patch.setattr(SecureAggregator, "_charge", lambda self, made: kept.append(made))
    patch.setattr(SecureAggregator, "decoded", late)


def moved_when_aborted(patch: pytest.MonkeyPatch) -> None:
    """A round that is given up leaves a trace in the model."""
    finish = ParameterServer.finish

    def mutant(self: ParameterServer, round_number: int, aborted: str | None = None, groups: int = 1) -> dict[str, Any]:
        self._parameters = self._parameters * 2
        return finish(self, round_number, aborted, groups)

    patch.setattr(ParameterServer, "finish", mutant)


@pytest.mark.parametrize(
    ("plant", "says"), [(charged_when_decoded, "was charged 0 times"), (moved_when_aborted, "changed the model")]
)
def test_a_planted_bug_is_named(
    private: Round, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[..., None], says: str
) -> None:
    plant(monkeypatch)
    failures = audit(private, tmp_path).failures()
    failures = [line for line in failures if "nobody came" not in line]
    assert len(failures) == 2
    for line, what in zip(failures, ("too few masked inputs", "too few confirmations"), strict=True):
        assert line.startswith(f"charges: an exchange with {what} {says}")


def skipped_for_nothing(patch: pytest.MonkeyPatch) -> None:
    """S8: a round for which too few came is not charged."""
    patch.setattr(SecureAggregator, "charge_plain", lambda *_: None)


def divided_by_who_is_there(patch: pytest.MonkeyPatch) -> None:
    """S8: the denominator follows the survivors."""
    decode = UpdateCodec.decode

    def mutant(self: UpdateCodec, total: Any, survivors: int, *more: Any) -> Averaged:
        averaged = decode(self, total, survivors, *more)
        return replace(averaged, update=averaged.update * (self.denominator / survivors))

    patch.setattr(UpdateCodec, "decode", mutant)


def plain_sum_by_who_is_there(patch: pytest.MonkeyPatch) -> None:
    """S8: a plain mean of the sum's own weights, and noise on it."""
    apply = ParameterServer.apply

    def mutant(self: ParameterServer, number: int, *updates: Any, cohort: list[str]) -> float:
        assert self._aggregator is not None
        patch.setattr(UpdateCodec, "denominator", sum(update.total_weight for update in updates))
        return apply(self, number, *updates, cohort=cohort)

    patch.setattr(ParameterServer, "apply", mutant)


@pytest.mark.parametrize(
    ("aggregation", "mechanism", "plant", "says"),
    [
        ("secure", "skellam", skipped_for_nothing, "a round for which nobody came was charged 0 times"),
        ("plain", "gaussian", skipped_for_nothing, "a round for which nobody came was charged 0 times"),
        ("secure", "skellam", divided_by_who_is_there, "where 1 of 5 are missing"),
        ("secure", "gaussian", divided_by_who_is_there, "where 1 of 5 are missing"),
        (
            "plain",
            "gaussian",
            plain_sum_by_who_is_there,
            "where 3 of 5 are missing",
        ),
    ],
)
def test_a_release_that_tells_who_came_is_named(
    make_round: Make,
    skellam: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    aggregation: str,
    mechanism: str,
    plant: Callable[..., None],
    says: str,
) -> None:
    privacy = skellam["privacy"] | {"mechanism": mechanism, "insecure_min_survivors": 3}
    audited = make_round(5, privacy=privacy, aggregation=aggregation)
    assert audit(audited, tmp_path).failures() == []
    plant(monkeypatch)
    (line,) = audit(audited, tmp_path).failures()
    assert says in line


def test_without_noise_nothing_is_claimed(few: Round, tmp_path: Path) -> None:
    outcome = audit(few, tmp_path)
    assert outcome.failures() == [] and figures(outcome) == {"rounds charged": 0}
    assert "No epsilon is claimed" in outcome.notes[0]


def test_noise_of_a_trusted_server_is_held_against_the_history_alone(
    make_round: Make, skellam: dict[str, Any], tmp_path: Path
) -> None:
    privacy = skellam["privacy"] | {"mechanism": "gaussian"}
    audited = make_round(5, aggregation="plain", privacy=privacy)
    records = write_run(tmp_path, audited)
    outcome = audit(audited, tmp_path)
    assert outcome.failures() == [] and len(outcome.figures) == 6
    write_history(tmp_path, [*records, records[2] | {"round": 4}])
    assert "charges: rounds whose masked inputs arrived are not charged: 4" in audit(audited, tmp_path).failures()


def test_an_epsilon_that_is_no_number_fails(private: Round, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, private)
    monkeypatch.setattr("fedtalk_ray.privacy.ledger.epsilon", lambda rounds, delta: float("nan"))
    assert any("release view is nan: no finite number" in line for line in audit(private, tmp_path).failures())
