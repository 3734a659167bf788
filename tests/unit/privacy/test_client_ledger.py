"""What a client agreed to spend over all runs it does not exceed, whoever asks and whatever dies."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from dp_accounting import get_epsilon_gaussian

from fedtalk_ray.privacy.accounting import Noise
from fedtalk_ray.privacy.client_ledger import Agreement, ClientLedger, Spent
from fedtalk_ray.privacy.protocol import Code
from tests.unit.privacy.conftest import aborts

STRONG, WEAK = Noise("gaussian", 8.0), Noise("gaussian", 4.0)


def refused(code: Code, work: Callable[[], object]) -> None:
    with aborts(code):
        work()


@pytest.fixture
def ledger(tmp_path: Path) -> ClientLedger:
    return ClientLedger(tmp_path / "ledgers" / "ana.json")


def test_rounds_of_several_runs_add_up(ledger: ClientLedger) -> None:
    for place in range(5):
        ledger.charge(f"run {place % 2}", place // 2 + 1, place // 2, None, Agreement(rounds=5))
    refused(Code.NOT_AGREED, lambda: ledger.charge("run 2", 1, 0, None, Agreement(rounds=5)))
    assert ledger.read().rounds == {"run 0": 3, "run 1": 2} and ledger._count.read_text() == "5"


def test_epsilon_of_several_runs_adds_up(ledger: ClientLedger) -> None:
    """Without amplification, as every round is one that she was in: inverse squares of the multipliers add up."""
    for place, noise in enumerate([STRONG, WEAK, STRONG]):
        ledger.charge(f"run {place}", 1, 0, noise, Agreement())
    expected = get_epsilon_gaussian((2 / 8**2 + 1 / 4**2) ** -0.5, 1e-6)
    assert ledger.read().epsilon(1e-6) == pytest.approx(expected, rel=1e-4)
    refused(Code.NOT_AGREED, lambda: ledger.charge("run 3", 1, 0, WEAK, Agreement(expected, delta=1e-6)))
    assert ledger.read().epsilon(1e-6) == pytest.approx(expected, rel=1e-4)


def test_who_agreed_to_an_epsilon_answers_no_round_without_noise(ledger: ClientLedger) -> None:
    refused(Code.NOT_AGREED, lambda: ledger.charge("run", 1, 0, None, Agreement(epsilon=100.0)))
    assert ledger.read() == Spent()
    ledger.charge("run", 1, 0, None, Agreement())
    assert ledger.read().epsilon(1e-5) == math.inf
    refused(Code.NOT_AGREED, lambda: ledger.charge("run", 2, 1, STRONG, Agreement(epsilon=100.0)))


ONE_ROUND = (
    '{"rounds": {"run": 1}, "last": {"run": 1}, "noise": [[{"kind": "gaussian", "multiplier": 8.0}, 1]], "bare": 0}'
)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", ONE_ROUND.replace('"multiplier": 8.0', '"deviation": 8.0'), ONE_ROUND.replace("1}", '"x"}')]
    + [ONE_ROUND.replace("8.0", multiplier) for multiplier in ("0", "NaN", '"8"')]
    + [ONE_ROUND.replace("gaussian", "laplace"), ONE_ROUND.replace('"bare": 0', '"bare": 1')]
    + [ONE_ROUND.replace(part, "") for part in ('"rounds": {"run": 1}, ', '"last": {"run": 1}, ', ', "bare": 0')],
)
def test_a_damaged_ledger_ends_the_clients_part(ledger: ClientLedger, text: str) -> None:
    ledger._path.parent.mkdir()
    ledger._path.write_text(ONE_ROUND)
    assert ledger.read() == Spent({"run": 1}, [(STRONG, 1)], last={"run": 1})
    ledger._path.write_text(text)
    refused(Code.RECORD_DAMAGED, lambda: ledger.charge("run", 1, 0, STRONG, Agreement()))
    assert ledger._path.read_text() == text


def test_a_ledger_of_one_run_that_forgot_or_is_of_another_is_noticed(tmp_path: Path) -> None:
    ledger = ClientLedger(tmp_path / "ledger.json", one_run=True)
    ledger.charge("run", 1, 0, STRONG, Agreement())
    old = ledger._path.read_text()
    refused(Code.RECORD_DAMAGED, lambda: ledger.charge("renamed", 1, 0, STRONG, Agreement()))
    ledger.charge("run", 2, 1, STRONG, Agreement())
    for forget in (lambda: ledger._path.write_text(old), ledger._path.unlink):
        forget()
        left = ledger.read()
        refused(Code.RECORD_DAMAGED, lambda: ledger.charge("run", 3, 2, STRONG, Agreement()))
        assert ledger.read() == left


@pytest.mark.parametrize("how", ["deleted", "put back", "a link"])
def test_a_ledger_that_forgot_between_two_runs_is_noticed_by_the_count_beside_it(
    ledger: ClientLedger, how: str
) -> None:
    ledger.charge("run", 1, 0, STRONG, Agreement(rounds=2))
    old, path = ledger._path.read_text(), ledger._path
    ledger.charge("run", 2, 1, STRONG, Agreement(rounds=2))
    if how == "a link":
        path.symlink_to(path.rename(path.with_name("elsewhere.json")))
    else:
        path.unlink() if how == "deleted" else path.write_text(old)
    refused(Code.RECORD_DAMAGED, lambda: ClientLedger(path).charge("next", 1, 0, STRONG, Agreement(rounds=2)))
    assert path.is_symlink() == (how == "a link") and ledger._count.read_text() == "2"


def test_a_client_that_was_killed_before_the_count_was_written_goes_on(ledger: ClientLedger) -> None:
    for number in (1, 2):
        ledger.charge("run", number, number - 1, STRONG, Agreement())
        ledger._count.write_text("0") if number == 2 else ledger._count.unlink()
    assert ledger.charge("run", 3, 2, STRONG, Agreement()) == 3 and ledger._count.read_text() == "3"
    ledger._count.write_text("many")
    refused(Code.RECORD_DAMAGED, lambda: ledger.charge("run", 4, 3, STRONG, Agreement()))


def test_a_round_is_charged_once_whatever_the_clients_record_says(ledger: ClientLedger) -> None:
    for number in (2, 3, 5):
        ledger.charge("run", number, 0, STRONG, Agreement())
    left = ledger.read()
    assert left.last == {"run": 5} and left.rounds == {"run": 3}
    for number in (2, 4, 5):
        for before in (0, 2, 3):
            refused(Code.OLD_ROUND, partial(ledger.charge, "run", number, before, STRONG, Agreement()))
    assert ledger.read() == left
    assert ledger.charge("run", 6, 2, STRONG, Agreement()) == 4


def charge_often(path: Path, run: str, times: int) -> None:
    for before in range(times):
        ClientLedger(path).charge(run, before + 1, before, STRONG, Agreement())


def test_processes_that_charge_at_once_lose_nothing(ledger: ClientLedger) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=charge_often, args=(ledger._path, run, 10)) for run in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert ledger.read().rounds == dict.fromkeys("abc", 10) and ledger.read().noise == [(STRONG, 30)]
