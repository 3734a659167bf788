"""What a client agreed to spend over all runs it does not exceed, whoever asks and whatever dies."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from dp_accounting import get_epsilon_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.privacy import client_ledger
from fedtalk_ray.privacy.accounting import Noise
from fedtalk_ray.privacy.client_ledger import Agreement, ClientLedger, Spent
from fedtalk_ray.privacy.protocol import Aborted, Code

STRONG, WEAK = Noise("gaussian", 8.0), Noise("gaussian", 4.0)


def refused(code: Code, work: Callable[[], object]) -> None:
    with pytest.raises(Aborted) as caught:
        work()
    assert caught.value.code == code


@pytest.fixture
def ledger(tmp_path: Path) -> ClientLedger:
    return ClientLedger(tmp_path / "ledgers" / "ana.json")


def test_rounds_of_several_runs_add_up(ledger: ClientLedger) -> None:
    for place in range(5):
        ledger.charge(f"run {place % 2}", place // 2 + 1, place // 2, None, Agreement(rounds=5))
    refused(Code.NOT_AGREED, lambda: ledger.charge("run 2", 1, 0, None, Agreement(rounds=5)))
    assert ledger.read().rounds == {"run 0": 3, "run 1": 2}


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
    + [ONE_ROUND.replace("8.0", multiplier) for multiplier in ("0", "NaN", '"8"', "null")]
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


@pytest.mark.parametrize("how", ["deleted", "put back"])
def test_a_ledger_that_forgot_is_noticed_by_what_the_client_remembers_of_the_run(tmp_path: Path, how: str) -> None:
    ledger = ClientLedger(tmp_path / "ledger.json", one_run=True)
    ledger.charge("run", 1, 0, STRONG, Agreement())
    old = ledger._path.read_text()
    ledger.charge("run", 2, 1, STRONG, Agreement())
    ledger._path.unlink() if how == "deleted" else ledger._path.write_text(old)
    left = ledger.read()
    refused(Code.RECORD_DAMAGED, lambda: ledger.charge("run", 3, 2, STRONG, Agreement()))
    assert ledger.read() == left


@pytest.mark.parametrize("how", ["deleted", "put back", "a link", "a link to nothing"])
def test_a_ledger_that_forgot_between_two_runs_is_noticed_by_the_count_beside_it(
    ledger: ClientLedger, how: str
) -> None:
    """A new run's record knows nothing of others, and what was agreed to was spent again. A link was replaced by what
    was written, and the file behind it never grew."""
    ledger.charge("run", 1, 0, STRONG, Agreement(rounds=2))
    old, path = ledger._path.read_text(), ledger._path
    ledger.charge("run", 2, 1, STRONG, Agreement(rounds=2))
    if how.startswith("a link"):
        elsewhere = path.rename(path.with_name("elsewhere.json"))
        path.symlink_to(elsewhere if how == "a link" else path.with_name("nowhere.json"))
    else:
        path.unlink() if how == "deleted" else path.write_text(old)
    refused(Code.RECORD_DAMAGED, lambda: ClientLedger(path).charge("next", 1, 0, STRONG, Agreement(rounds=2)))
    assert path.is_symlink() == how.startswith("a link") and ledger._count.read_text() == "2"


def test_who_looks_while_another_charges_finds_nothing_wrong(
    ledger: ClientLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs side by side: it had read the ledger before the other's round, and the count after it."""
    ledger.charge("run", 1, 0, STRONG, Agreement())
    read, other = client_ledger.read_own, ClientLedger(ledger._path)

    def interrupted(path: Path) -> str:
        found = read(path)
        monkeypatch.setattr(client_ledger, "read_own", read)
        other.charge("other", 1, 0, STRONG, Agreement())
        return found

    monkeypatch.setattr(client_ledger, "read_own", interrupted)
    assert sum(ledger.read().rounds.values()) == 2


def test_a_client_that_was_killed_before_the_count_was_written_goes_on(ledger: ClientLedger) -> None:
    for number in (1, 2):
        ledger.charge("run", number, number - 1, STRONG, Agreement())
        ledger._count.write_text("0") if number == 2 else ledger._count.unlink()
    assert ledger.charge("run", 3, 2, STRONG, Agreement()) == 3 and ledger._count.read_text() == "3"
    ledger._count.write_text("many")
    refused(Code.RECORD_DAMAGED, lambda: ledger.charge("run", 4, 3, STRONG, Agreement()))


def test_the_ledger_of_one_run_is_of_no_other(tmp_path: Path) -> None:
    """The run's name is the server's to write: under another one the round before was answered again."""
    ledger = ClientLedger(tmp_path / "ledger.json", one_run=True)
    ledger.charge("run", 3, 0, STRONG, Agreement())
    refused(Code.RECORD_DAMAGED, lambda: ledger.charge("renamed", 3, 0, STRONG, Agreement()))
    assert ledger.read().rounds == {"run": 1}


def test_a_round_is_charged_once_whatever_the_clients_record_says(ledger: ClientLedger) -> None:
    """A client that was killed between its two books sits the round out; so does one whose record was put back."""
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
    workers = [context.Process(target=charge_often, args=(ledger._path, run, 20)) for run in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert ledger.read().rounds == dict.fromkeys("abc", 20) and ledger.read().noise == [(STRONG, 60)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, STRONG, WEAK])), max_size=8), st.data())
def test_no_order_of_rounds_goes_beyond_what_was_agreed(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, Noise | None]], data: st.DataObject
) -> None:
    """And what was agreed is not withheld: a refused round is one that would have gone beyond it."""
    ledger = ClientLedger(tmp_path_factory.mktemp("ledger") / "c.json")
    agreement = Agreement(data.draw(st.sampled_from([None, 1.0, 2.0])), data.draw(st.sampled_from([None, 2, 5])))
    for run, noise in asked:
        before = ledger.read()
        known = before.rounds.get(run, 0)
        after = before.and_one(run, known + 1, noise)
        within = sum(after.rounds.values()) <= (agreement.rounds or 99)
        within = within and (agreement.epsilon is None or after.epsilon(agreement.delta) <= agreement.epsilon)
        try:
            ledger.charge(run, known + 1, known, noise, agreement)
        except Aborted:
            assert not within and ledger.read() == before
        else:
            assert within and ledger.read() == after
    json.loads(ledger._path.read_text() if ledger._path.exists() else "{}")
