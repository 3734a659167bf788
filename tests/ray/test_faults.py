"""Slots that die, hang or are late: what a pool makes of it."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import ObjectReconstructionFailedError

from fedtalk_ray.actors import pool as pool_module
from fedtalk_ray.actors.pool import SlotPool
from fedtalk_ray.actors.ray_errors import RoundLost, fetch
from fedtalk_ray.errors import ClusterError
from fedtalk_ray.settings import TrainConfig
from tests.ray.conftest import Make


class Counting:
    """A slot whose clients are numbers: no model, and each client does what its name says.

    "3" is done at once. "sleep 5" takes five seconds or until it is stopped. "die FILE" kills the process unless FILE
    exists, and makes it first, so that it dies once. "poison" kills every time. "missing" needs what is gone. "hang"
    listens to nobody, and "fall" kills the process when it is told to stop.
    """

    ASKED = frozenset({"start", "pid", "work"})

    def __init__(self, config: TrainConfig) -> None:
        self.stopped = 0

    def start(self) -> np.ndarray:
        return np.ones(2, np.float32)

    def stop(self, call: int) -> None:
        self.stopped = max(self.stopped, call)

    def pid(self) -> int:
        return os.getpid()

    def work(self, clients: list[str], call: int = 0) -> tuple[str, ...]:
        done = []
        for client in clients:
            what, _, argument = client.partition(" ")
            if what == "missing":
                raise ObjectReconstructionFailedError("00" * 28, None, "")
            if what == "poison":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "die" and not os.path.exists(argument):
                Path(argument).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            ends = time.monotonic() + (float(argument) if what == "sleep" else 60 if what in ("hang", "fall") else 0)
            while time.monotonic() < ends and (what == "hang" or self.stopped < call):
                time.sleep(0.02)
            if what == "sleep" and self.stopped >= call:
                break
            if what == "fall":
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(client)
        return tuple(done)


@pytest.fixture
def pool_of(make_config: Make, ray_cluster: None, tmp_path: Path):
    """Pools of `Counting` slots, closed after the test."""
    pools = []

    def make(slots: int = 2, more: dict[str, Any] | None = None, **failures: Any) -> SlotPool:
        config = make_config(tmp_path / "run", slots={"count": slots} | (more or {}), failures=failures)
        pools.append(SlotPool(config, Counting))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def work(pool: SlotPool, clients: list[str], **options: Any) -> list[tuple[Any, str]]:
    found = pool.run("work", clients, stoppable=True, done=len, **options)
    return [(outcome.result, outcome.lost) for outcome in found]


def test_a_chunk_whose_slot_died_is_done_by_another_one_unless_it_kills_every_slot(
    pool_of: Callable[..., SlotPool], tmp_path: Path
) -> None:
    pool = pool_of(retries=1)
    clients = ["1", f"die {tmp_path / 'once'}", "3", "4"]
    assert work(pool, clients) == [(("1", "3"), ""), ((clients[1], "4"), "")]
    pool.fit_to(4)
    assert len(pool._slots) == 2, "and the dead slot was replaced"
    assert work(pool, ["1", "poison"]) == [(("1",), ""), (None, "slot died")]


def test_without_replacement_the_last_slot_is_the_end(pool_of: Callable[..., SlotPool], tmp_path: Path) -> None:
    pool = pool_of(slots=1, replace=False)
    with pytest.raises(ClusterError, match=r"all slots of the run died.* go on with --resume"):
        work(pool, [f"die {tmp_path / 'once'}"])


def test_a_replacement_that_finds_no_room_ends_the_run(pool_of: Callable[..., SlotPool], tmp_path: Path) -> None:
    """B8: with nothing else under way the driver waited for it for ever."""
    cpus = ray.cluster_resources()["CPU"]
    pool = pool_of(slots=1, more={"num_cpus": cpus - 1, "placement_timeout_s": 5.0})
    # Waits for the whole cluster, and has it as soon as the slot is gone.
    greedy = ray.remote(Counting).options(num_cpus=cpus).remote(None)
    asked = greedy.pid.remote()
    try:
        started = time.monotonic()
        with pytest.raises(ClusterError, match=r"0 of 1 slots were up after 5 s .*placement_timeout_s"):
            work(pool, [f"die {tmp_path / 'once'}"])
        assert time.monotonic() - started < 60
        assert isinstance(ray.get(asked, timeout=30), int), "it was this that took the room"
    finally:
        ray.kill(greedy)


def test_who_is_late_is_left_out_and_the_others_count(pool_of: Callable[..., SlotPool]) -> None:
    pool = pool_of(deadline_s=1.0, grace_s=20.0)
    started = time.monotonic()
    assert work(pool, ["1", "2", "sleep 30", "sleep 30", "5"]) == [(("1",), ""), (("2",), "")]
    assert work(pool, ["1", "2"]) == [(("1",), ""), (("2",), "")], "a stop is for one call only"
    # A slot that dies after the round was closed is not tried again: another one would begin all over.
    assert work(pool, ["1", "fall"]) == [(("1",), ""), (None, "slot died")]
    assert time.monotonic() - started < 20


def test_a_slot_that_starts_up_takes_up_who_waits(pool_of: Callable[..., SlotPool], tmp_path: Path) -> None:
    clients = [f"die {tmp_path / 'once'}", "2"]
    assert work(pool_of(slots=1), clients) == [(tuple(clients), "")]


def test_a_slot_that_does_not_hear_is_taken_for_dead(pool_of: Callable[..., SlotPool]) -> None:
    pool = pool_of(deadline_s=0.5, grace_s=0.5)
    assert work(pool, ["1", "hang"]) == [(("1",), ""), (None, "late")]
    assert len(pool.ready) == 1
    pool.fit_to(2)
    assert work(pool, ["1", "2"]) == [(("1",), ""), (("2",), "")]


def test_a_round_closes_when_enough_are_done_and_begins_again_where_what_it_works_on_is_gone(
    pool_of: Callable[..., SlotPool],
) -> None:
    pool = pool_of()
    clients = ["1", "2", "sleep 30", "sleep 30", "5", "6", "7", "8"]
    started = time.monotonic()
    found = work(pool, clients, enough=2)
    assert time.monotonic() - started < 10
    done = [client for said, _ in found for client in said or ()]
    assert len(done) >= 2 and not {"sleep 30"} & set(done)
    assert len(found) == 8, "small chunks, so that something can be left out"
    # Such as the shared parameters: another slot would not find them either, so that the slot is not to blame.
    with pytest.raises(RoundLost, match=r"what a call was to work on is gone .* go on with --resume"):
        work(pool, ["1", "missing"])
    assert len(pool.ready) == 2


def test_a_frozen_slot_is_lost_to_a_stage_that_only_it_can_answer(pool_of: Callable[..., SlotPool]) -> None:
    pool = pool_of(deadline_s=5, grace_s=1.0)
    first, second = pool.ready
    pid = ray.get(second.call("pid"))
    os.kill(pid, signal.SIGSTOP)
    try:
        calls = [(slot, slot.call("work", ["1"])) for slot in (first, second)]
        assert pool.gather(calls) == [("1",), None]
        assert not pool.has(second)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_slot_whose_result_went_with_its_node_is_lost(
    pool_of: Callable[..., SlotPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large results stay on the slot's node until somebody fetches them. Ray's error is made up here; a node that is
    killed brings it about in the nightly tests, once in some runs."""
    pool, when, lost = pool_of(), "", list[ray.ObjectRef]()

    def fetched(ref: ray.ObjectRef, timeout: float | None = None) -> Any:
        if ref in lost or (when == "works" and fetch(ref, timeout) == ("2",) and pool.has(second)):
            raise ObjectReconstructionFailedError(ref.hex(), None, "")
        return fetch(ref, timeout)

    monkeypatch.setattr(pool_module, "fetch", fetched)
    for each in ("starts", "works", "answers"):
        when = ""
        pool.fit_to(2)
        pool._await(2)
        when, (first, second) = each, pool.ready
        lost = [second.call("pid")]
        ray.wait(lost)
        if when == "answers":
            assert pool.gather([(first, first.call("work", ["1"])), (second, lost[0])]) == [("1",), None]
        else:
            second.starting = lost[0] if when == "starts" else None
            assert work(pool, ["1", "2"]) == [(("1",), ""), (("2",), "")]
        assert not pool.has(second), when
