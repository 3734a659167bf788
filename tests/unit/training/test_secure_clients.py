"""The clients of a slot in secure rounds: each round is answered once, whoever else asks and whatever it is called."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.actors.slot import SlotProcess
from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.roster import extend_roster
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.privacy.client_ledger import ClientLedger
from fedtalk_ray.privacy.client_record import Answered, ClientRecord
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.protocol import Aborted, Code
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.training.secure_clients import SecureClients

COHORT = [f"c{place}" for place in range(8)]
BACKBONE = bytes(32)
MODEL = np.zeros(4, np.float32)
WRONG: list[Any] = ["0", None, True, -1]
"""What no count is."""
SIMULATED = {"simulated_cohort": 200, "simulated_population": 20_000}


def enrolled(config: TrainConfig) -> SecureClients:
    """A slot of a run that begins, whose roster names all clients."""
    run = RunFolder(Path(config.run))
    save_checkpoint(run.checkpoints, Checkpoint(0, MODEL, {}), config_fingerprint(config))
    clients = SecureClients(config, "faces", len(MODEL), BACKBONE)
    extend_roster(run.roster, SigningKey.kept_in(run.server_key).public, clients.enrol(COHORT))
    return clients


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    tree = {"run": str(tmp_path / "run"), "shards": "s", "pretrained": "p", "cohort": {"size": 8}, "rounds": 3}
    return parse_config(tree | {"phases": ["units", "faces"]}, "test")


def alone(folder: Path, **more: Any) -> TrainConfig:
    """Of a run that counts by itself."""
    tree = {"run": str(folder / "run"), "shards": "s", "pretrained": "p", "cohort": {"size": 8}, "phases": ["faces"]}
    return parse_config(tree | more, "test")


def agreeing(folder: Path) -> TrainConfig:
    """Of a run whose clients keep ledgers beside it."""
    return alone(folder, agreement={"ledgers": str(folder / "ledgers")})


@pytest.fixture
def slot(config: TrainConfig) -> Callable[..., SecureClients]:
    """Another slot of the run, in a phase."""
    enrolled(config)
    return lambda phase="faces": SecureClients(config, phase, len(MODEL), BACKBONE)


class Liar:
    """A server that numbers rounds as it likes, over one model."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config

    def plan(self, number: int) -> tuple[ParameterServer, bytes]:
        server = ParameterServer(self._config.run, self._config)
        server._round = number - 1
        if number > self._config.all_rounds:
            # No round of the run, so that it has no clip norm either.
            server._adapted = 1.0
        return server, server.begin(number, COHORT, BACKBONE)


def refused(code: Code, work: Callable[[], object]) -> None:
    with pytest.raises(Aborted) as caught:
        work()
    assert caught.value.code == code


def joined(clients: SecureClients, frame: bytes, who: str = "c0") -> SecureClients:
    clients.open_round(frame)
    clients.join(who, MODEL)
    clients.offer(who, np.ones(4, np.float32), 1.0)
    return clients


def shared(clients: SecureClients, server: ParameterServer, frame: bytes) -> dict[str, bytes]:
    """All clients dealt their shares: what the server sends to each of them next."""
    frames = dict.fromkeys(COHORT, b"")
    for who in COHORT:
        joined(clients, frame, who)
    for stage in ("advertise", "share"):
        frames = server.collect(stage, clients.answer(stage, frames)[1]).frames
    return frames


def test_the_number_of_the_plan_decides_the_phase(config: TrainConfig, slot: Callable[..., SecureClients]) -> None:
    """Statistics do not change from call to call: a second sum of them over other clients would tell who was left out.
    There is one number for them, and what has a number is answered once."""
    for phase, fitting, others in (("units", (1,), (0, 2)), ("faces", (2, 4), (1, 5))):
        for number in fitting:
            assert slot(phase).open_round(Liar(config).plan(number)[1]).round == number
        for number in others:
            refused(Code.NOT_PINNED, partial(slot(phase).open_round, Liar(config).plan(number)[1]))


def test_two_exchanges_over_one_round_get_one_masked_update(config, slot) -> None:
    """The second exchange begins before the first has the client's update; their sums would differ by a client."""
    masked = []
    runs = []
    for _ in range(2):
        server, frame = Liar(config).plan(2)
        clients = slot()
        for who in COHORT:
            joined(clients, frame, who)
        runs.append((server, clients, dict.fromkeys(COHORT, b"")))
    for stage in ("advertise", "share", "mask"):
        for index, (server, clients, frames) in enumerate(runs):
            answers, payload = clients.answer(stage, frames)
            if stage == "mask":
                masked.append((answers.clients, answers.refused))
            else:
                runs[index] = (server, clients, server.collect(stage, payload).frames)
    assert masked == [(tuple(COHORT), {}), ((), {str(Code.OLD_ROUND): 8})]


def test_a_slot_answers_the_stages_of_the_protocol_and_nothing_else(config, slot) -> None:
    """Whatever method of a client was named got a signature."""
    clients = joined(slot(), Liar(config).plan(2)[1])
    for asked in ("_abort", "seal", "__init__", "", "Advertise"):
        with pytest.raises(ValueError, match="is no stage of the protocol"):
            clients.answer(asked, {"c0": b""})


def test_a_process_calls_what_a_slot_lists_and_nothing_else(config: TrainConfig) -> None:
    process = SlotProcess(ClientSlot, config, "slot")
    for asked in ("_fit_one", "_secure", "__class__", "stop", "_load"):
        with pytest.raises(RunError, match=f"not asked for '{asked}'"):
            process.call(asked)
    assert all(callable(getattr(ClientSlot, name)) for name in ClientSlot.ASKED)


def test_updates_of_who_dropped_out_are_not_kept(config: TrainConfig, slot: Callable[..., SecureClients]) -> None:
    """They lay in memory until the next plan."""
    server, frame = Liar(config).plan(2)
    clients = slot()
    frames = shared(clients, server, frame)
    frames["c0"] = b"no message"
    del frames["c1"]
    clients.answer("mask", frames)
    assert list(clients._updates) == ["c1"], "who may still be asked"
    clients.answer("confirm", {})
    assert not clients._updates


# What is kept.


def test_a_record_only_grows_and_survives(tmp_path: Path) -> None:
    record = ClientRecord(tmp_path / "protocol.json")
    record.create()
    assert record.read() == Answered()
    record.begin(4, (10, "ab"))
    record.mask(2, lambda before: before + 1)
    again = ClientRecord(tmp_path / "protocol.json")
    assert again.read() == Answered(4, 2, 1, (10, "ab"))
    refused(Code.OLD_ROUND, lambda: again.begin(4, (10, "ab")))
    refused(Code.OLD_ROUND, lambda: again.mask(2, lambda before: before + 1))
    assert again.read() == Answered(4, 2, 1, (10, "ab"))
    again.mask(3, lambda before: before + 1)
    assert again.read().charged == 2


DAMAGED = [
    *("", "{", "[]", "{}"),
    *(json.dumps({**vars(Answered()), **wrong}) for wrong in ({"more": 2}, {"roster": 5})),
    *(json.dumps({**vars(Answered()), "roster": roster}) for roster in (["5", "ab"], [5, 6])),
    *(json.dumps({**vars(Answered()), name: each}) for name in ("exchange", "masked", "charged") for each in WRONG),
    *(json.dumps({each: 0 for each in vars(Answered()) if each != name}) for name in vars(Answered())),
]


def test_a_client_whose_record_is_damaged_takes_no_part(config, slot) -> None:
    clients, folder = slot(), RunFolder(Path(config.run)).client("c0")
    clients.open_round(Liar(config).plan(2)[1])
    for content in DAMAGED:
        folder.protocol_state.write_text(content)
        refused(Code.RECORD_DAMAGED, lambda: clients.join("c0", MODEL))
    clients.join("c1", MODEL)
    answers, payload = clients.answer("advertise", dict.fromkeys(COHORT, b""))
    assert answers.clients == ("c1",) and len(payload) == 1, "the others' records are their own"
    folder.signing_key.write_bytes(b"half")
    assert list(slot().enrol(COHORT)) == COHORT[1:]


@pytest.mark.parametrize(
    ("elsewhere", "book", "trouble", "answered", "new"),
    [
        (False, "ledger", "deleted", Code.OLD_ROUND, Code.RECORD_DAMAGED),
        (False, "ledger", "cut short", Code.OLD_ROUND, Code.RECORD_DAMAGED),
        (False, "ledger", "put back", Code.OLD_ROUND, Code.RECORD_DAMAGED),
        (False, "protocol_state", "deleted", Code.RECORD_DAMAGED, Code.RECORD_DAMAGED),
        (False, "protocol_state", "cut short", Code.RECORD_DAMAGED, Code.RECORD_DAMAGED),
        (False, "protocol_state", "put back", Code.OLD_ROUND, None),
        (True, "protocol_state", "put back", Code.OLD_ROUND, None),
    ],
)
def test_a_client_one_of_whose_books_lost_something_answers_no_round_twice(
    tmp_path: Path, elsewhere: bool, book: str, trouble: str, answered: Code, new: Code | None
) -> None:
    """answered: how a round is refused that it answered before; new: another one. elsewhere: with ledgers over runs."""
    config = agreeing(tmp_path) if elsewhere else alone(tmp_path)
    enrolled(config)
    path, first = getattr(RunFolder(Path(config.run)).client("c0"), book), ""
    for number in (1, 2):
        slot = SecureClients(config, "faces", len(MODEL), BACKBONE)
        assert len(slot.answer("mask", shared(slot, *Liar(config).plan(number)))[0].clients) == 8
        first = first or path.read_text()
    if trouble == "deleted":
        path.unlink()
    else:
        path.write_text(first if trouble == "put back" else first[:-5])
    SecureClients(config, "faces", len(MODEL), BACKBONE).enrol(COHORT)  # who has a key had its books before
    for number, code in ((1, answered), (2, answered), (3, new)):
        slot = SecureClients(config, "faces", len(MODEL), BACKBONE)
        slot.open_round(Liar(config).plan(number)[1])
        if code is not None:
            refused(code, partial(slot.join, "c0", MODEL))
        slot.join("c1", MODEL) if number == 3 else None
    left = path.read_text() if path.exists() else None
    assert left == {"deleted": None, "cut short": first[:-5], "put back": first}[trouble]


@pytest.mark.parametrize("put_back", [False, True])
def test_a_client_takes_part_in_no_more_rounds_of_a_run_than_its_cap(tmp_path: Path, put_back: bool) -> None:
    """Whatever its record says: where an older one was put back it counted fewer."""
    config = alone(tmp_path, privacy={"participation_cap": 2})
    enrolled(config)
    record, answered, old = RunFolder(Path(config.run)).client("c0").protocol_state, [], None
    for number in (1, 2, 3):
        slot = SecureClients(config, "faces", len(MODEL), BACKBONE)
        server, frame = Liar(config).plan(number)
        if old is None:
            old = record.read_text()
        if put_back:
            record.write_text(old)
        try:
            answered.append(len(slot.answer("mask", shared(slot, server, frame))[0].clients))
        except Aborted as error:
            answered.append(error.code)
    assert answered == [8, 8, Code.CAP_REACHED]


@pytest.mark.parametrize("trouble", ["a folder in the lock's place", "a disk that fails"])
def test_a_client_whose_disk_refuses_its_ledger_is_silent_and_the_others_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trouble: str
) -> None:
    """It took the slot's other clients with it, and ended the run."""
    config, charge = agreeing(tmp_path), ClientLedger.charge
    clients, (server, frame) = enrolled(config), Liar(config).plan(1)
    frames = shared(clients, server, frame)
    if trouble == "a disk that fails":

        def fails_for_c3(self: ClientLedger, *arguments: Any, **more: Any) -> None:
            if self._path.name == "c3.json":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            charge(self, *arguments, **more)

        monkeypatch.setattr(ClientLedger, "charge", fails_for_c3)
    else:
        (tmp_path / "ledgers" / ".c3.json.lock").mkdir(parents=True)
    answers, payload = clients.answer("mask", frames)
    assert answers.clients == (*COHORT[:3], *COHORT[4:]) and len(payload) == 7
    assert answers.refused == {str(Code.CANNOT_GO_ON): 1}
    assert "c3 takes no further part: " in capsys.readouterr().out
    assert clients.answer("confirm", {"c3": b""})[0].clients == (), "its secrets are gone"


def test_a_client_whose_key_is_gone_makes_no_other(config: TrainConfig, slot: Callable[..., SecureClients]) -> None:
    """It answered under a key that nobody knows, and no line said why nobody heard it."""
    key, clients = RunFolder(Path(config.run)).client("c0").signing_key, slot()
    clients.open_round(Liar(config).plan(2)[1])
    key.unlink()
    with pytest.raises(RunError, match=r"signing.key cannot be read .*; the roster names its owner by it"):
        clients.join("c0", MODEL)
    assert not key.exists()


def test_over_all_runs_a_client_answers_as_often_as_it_agreed_to(tmp_path: Path) -> None:
    """The second run's server knows nothing of the first, and the client's ledger does."""
    ledgers = tmp_path / "ledgers"
    answered: list[int | Code] = []
    for name in ("one", "two"):
        tree = {"run": str(tmp_path / name), "shards": "s", "pretrained": "p", "cohort": {"size": 8}, "rounds": 3}
        tree |= {"phases": ["units", "faces"], "agreement": {"ledgers": str(ledgers), "rounds": 3}}
        config = parse_config(tree, "test")
        enrolled(config)
        for number in (2, 3):
            slot = SecureClients(config, "faces", len(MODEL), BACKBONE)
            server, frame = Liar(config).plan(number)
            try:
                answered.append(len(slot.answer("mask", shared(slot, server, frame))[0].clients))
            except Aborted as error:
                answered.append(error.code)
    assert answered == [8, 8, 8, Code.NOT_AGREED]
    assert sum(ClientLedger(ledgers / "c0.json").read().rounds.values()) == 3


@pytest.mark.parametrize(("more", "epsilon"), [({}, 0.7255), (SIMULATED, math.inf)])
def test_a_round_of_simulated_noise_counts_as_one_without(tmp_path: Path, more: dict[str, int], epsilon: float) -> None:
    """A later run's epsilon would count on noise that was not there. The other is one round of z = 5."""
    tree = {"run": str(tmp_path / "run"), "shards": "s", "pretrained": "p", "cohort": {"size": 8}}
    tree |= {"privacy": {"mechanism": "gaussian", "noise_multiplier": 5.0, "clip_norm": 1.0, **more}}
    config = parse_config(tree | {"agreement": {"ledgers": str(tmp_path / "ledgers")}}, "test")
    clients = enrolled(config)
    server, frame = Liar(config).plan(1)
    assert len(clients.answer("mask", shared(clients, server, frame))[0].clients) == 8
    assert ClientLedger(tmp_path / "ledgers" / "c0.json").read().epsilon(1e-5) == pytest.approx(epsilon, abs=1e-4)


def test_a_ledger_stays_where_it_was_in_a_run(tmp_path: Path) -> None:
    """Another place would know nothing of what the client charged."""
    here, there = alone(tmp_path), agreeing(tmp_path)
    assert config_fingerprint(here) != config_fingerprint(there), "no resume with the other"
    assert config_fingerprint(here) == config_fingerprint(alone(tmp_path, agreement={"delta": 1e-6}))
    enrolled(here)
    slot = SecureClients(here, "faces", len(MODEL), BACKBONE)
    assert len(slot.answer("mask", shared(slot, *Liar(here).plan(1)))[0].clients) == 8
    save_checkpoint(RunFolder(Path(there.run)).checkpoints, Checkpoint(0, MODEL, {}), config_fingerprint(there))
    other = SecureClients(there, "faces", len(MODEL), BACKBONE)
    other.open_round(Liar(there).plan(2)[1])
    refused(Code.RECORD_DAMAGED, lambda: other.join("c0", MODEL))
