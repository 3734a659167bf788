"""The pool of client slots: how many there are, where, and how work is dealt to them while any of them may die.

The driver waits for events and never polls: one `ray.wait` over everything under way, new slots that are starting up
included. A chunk of clients whose slot died goes to another slot; a slot that died is replaced.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol

import numpy as np
import ray
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedtalk_ray.actors.placement import bundles, check_fits, next_nodes, nodes_of
from fedtalk_ray.actors.ray_errors import DEATHS, fetch, first_line
from fedtalk_ray.actors.slot import CLIENT_SLOT, Slot, start_slot
from fedtalk_ray.errors import ClusterError
from fedtalk_ray.federation.failure_policy import FailurePolicy
from fedtalk_ray.settings import TrainConfig

DIED, LATE = "slot died", "late"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a chunk of clients.

    slot: who worked for it. result: the call's first one, None where the chunk was lost. payload: a reference to its
    second one. lost: why ("slot died", "late"), empty where it was not.
    """

    clients: list[str]
    slot: Slot | None
    result: Any = None
    payload: ray.ObjectRef | None = None
    lost: str = ""


@dataclass
class _Work:
    """The chunks of one `SlotPool.run`."""

    queue: deque[int]
    attempts: list[int]
    outcomes: list[Outcome]
    stopped: bool = False
    running: dict[ray.ObjectRef, tuple[Slot, int, ray.ObjectRef | None]] = field(default_factory=dict)


class Pool(Protocol):
    """What the loop of rounds needs of whoever works for it: slots of the cluster, or sites (`actors.site_pool`)."""

    vector: np.ndarray
    """The shared vector before the phase's first round, float32 [D]."""
    sites: dict[str, int] | None
    """How many members were on line when `away` was asked last, of how many that the run began with; None of slots."""

    @property
    def policy(self) -> FailurePolicy: ...
    @property
    def ready(self) -> list[Slot]: ...
    def away(self, cohort: int) -> Collection[str]: ...
    def fit_to(self, clients: int) -> None: ...
    def run(self, method: str, clients: list[str], *arguments: Any, **how: Any) -> list[Outcome]: ...
    def gather(self, calls: list[tuple[Slot, ray.ObjectRef]]) -> list[Any]: ...
    def has(self, slot: Slot) -> bool: ...
    def tell_all(self, method: str, *arguments: Any) -> None: ...
    def one(self, method: str, *arguments: Any) -> Any: ...
    def close(self) -> None: ...


class SlotPool:
    """The client slots of one run."""

    sites: dict[str, int] | None = None

    def __init__(self, config: TrainConfig, held: str | type = CLIENT_SLOT) -> None:
        """Starts as many slots as the run begins with, and waits for them.

        held: what each slot holds, a plain class made with the configuration or where it is; its `start()` returns
        the shared parameters before round 1. Raises `ClusterError` when the slots cannot be placed, and the slot's own
        error when it cannot start.
        """
        self._config = config
        self.policy = FailurePolicy(config.failures)
        self._held = held
        self._slots: list[Slot] = []
        self._calls = 0
        self._told: list[tuple[str, tuple[Any, ...]]] = []
        self.vector: np.ndarray = np.zeros(0, np.float32)
        check_fits(config.slots, nodes_of(ray.nodes()))
        try:
            self._start(config.slots.count)
            self._await(config.slots.at_least or config.slots.count)
        except BaseException:
            self.close()
            raise

    @property
    def ready(self) -> list[Slot]:
        """Slots that hold the model."""
        return [slot for slot in self._slots if slot.starting is None]

    def away(self, cohort: int) -> Collection[str]:
        """Clients that cannot be asked: none, as long as there are slots for them, of whatever cohort."""
        return ()

    def fit_to(self, clients: int) -> None:
        """Before a round of so many clients: slots that died or whose node left are replaced, and with `slots.at_least`
        the pool grows or shrinks to what the cohort asks for and the cluster has. Where cohorts are hidden that is what
        one of the expected size asks for: anybody can count slots.

        Waits for one slot at most: the others take clients up when they are there.
        """
        slots = self._config.slots
        if self._config.privacy.hides_cohorts:
            clients = self._config.cohort.size
        nodes = {node.name for node in nodes_of(ray.nodes())}
        for slot in [slot for slot in self._slots if slot.node not in nodes]:
            self._lose(slot)
        wanted = slots.count
        if slots.at_least is not None:
            wanted = min(slots.count, max(slots.at_least, ceil(clients / slots.clients_per_slot)))
            request_resources(bundles=bundles(wanted, slots))
            for slot in self._slots[wanted:]:
                self._lose(slot)
        missing = wanted - len(self._slots)
        if missing and (self._config.failures.replace or slots.at_least is not None):
            self._start(missing)
        self._await(1)

    def run(
        self,
        method: str,
        clients: list[str],
        *arguments: Any,
        payload: bool = False,
        stoppable: bool = False,
        enough: int | None = None,
        done: Callable[[Any], int] = lambda result: 0,
    ) -> list[Outcome]:
        """Calls `method(chunk, *arguments)` for chunks of the clients, on whichever slot is free; outcomes by chunk.

        The chunks depend on `slots.count` and not on the slots that are alive. payload: whether the method returns two
        things, of which the second stays where it is. stoppable: whether it takes `call=` and can be stopped by
        `stop(call)`: at `failures.deadline_s`, and once `enough` clients are done, counted by `done` on what chunks
        return. Raises `ClusterError` when no slot is left, a user's error as itself.
        """
        self._calls += 1
        keywords: dict[str, Any] = {"call": self._calls} if stoppable else {}
        # With more chunks than slots there is something to leave out once enough have arrived.
        chunks = into_chunks(clients, self._config.slots.count * (4 if enough else 1))
        work = _Work(deque(range(len(chunks))), [0] * len(chunks), [Outcome(chunk, None) for chunk in chunks])
        allowed = self._config.failures.deadline_s if stoppable else None
        deadline = None if allowed is None else time.monotonic() + allowed
        while work.queue or work.running:
            busy = {slot for slot, _, _ in work.running.values()}
            for slot in self.ready:
                if work.queue and slot not in busy:
                    index = work.queue.popleft()
                    returns = 2 if payload else 1
                    found = slot.call(method, chunks[index], *arguments, returns=returns, **keywords)
                    first, second = found if payload else (found, None)
                    work.running[first] = (slot, index, second)
            if not work.running:
                if not self._any_starting():
                    self._start(1 if self._config.failures.replace else 0)
                # Nothing else can happen: a slot that cannot be placed must not be waited for without an end.
                self._await(1, until=deadline)
            arrived = self._wait([*work.running], deadline) if work.running else []
            for ref in arrived:
                self._settle(work, ref)
            finished = sum(done(outcome.result) for outcome in work.outcomes if outcome.result is not None)
            late = deadline is not None and time.monotonic() >= deadline
            if stoppable and not work.stopped and (late or (enough is not None and finished >= enough)):
                self._stop(work)
                deadline = time.monotonic() + self._config.failures.grace_s
            elif work.stopped and late:
                for slot, index, _ in work.running.values():
                    self._lose(slot)
                    work.outcomes[index] = Outcome(chunks[index], None, lost=LATE)
                work.running.clear()
        return work.outcomes

    def gather(self, calls: list[tuple[Slot, ray.ObjectRef]]) -> list[Any]:
        """The results of calls that only these slots can answer, in order; None for those of a slot that died.

        Where the configuration has a deadline, a slot that is silent for `failures.grace_s` counts as dead.
        """
        timeout = self._config.failures.grace_s if self._config.failures.deadline_s else None
        refs = [ref for _, ref in calls]
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=timeout, fetch_local=False)
        results = []
        for slot, ref in calls:
            try:
                results.append(fetch(ref, timeout=None if timeout is None else 0.0))
            except (*DEATHS, TimeoutError):
                self._lose(slot)
                results.append(None)
        return results

    def has(self, slot: Slot) -> bool:
        """Whether the slot is still there."""
        return slot in self._slots

    def tell_all(self, method: str, *arguments: Any) -> None:
        """Calls `method(*arguments)` on every slot there is, and on every one that comes later before it works."""
        self._told.append((method, arguments))
        self.gather([(slot, slot.call(method, *arguments)) for slot in self.ready])

    def one(self, method: str, *arguments: Any) -> Any:
        """The result of `method(*arguments)` on one slot, for work that any can do; on another one when it dies."""
        attempts = 0
        while True:
            if not self.ready:
                self._await(1)
            slot = self.ready[attempts % len(self.ready)]
            try:
                return fetch(slot.call(method, *arguments))
            except DEATHS as error:
                self._lose(slot)
                attempts += 1
                if not self.policy.tries_again(attempts):
                    raise ClusterError(f"{attempts} slots died at {method}: {first_line(error)}") from error

    def close(self) -> None:
        if self._config.slots.at_least is not None:
            request_resources(bundles=[])
        for slot in list(self._slots):
            self._lose(slot)

    def _start(self, wanted: int) -> None:
        """Starts up to `wanted` slots where there is room for them."""
        slots = self._config.slots
        held = [slot.node for slot in self._slots]
        for name in next_nodes(wanted, held, nodes_of(ray.nodes()), slots):
            here = NodeAffinitySchedulingStrategy(name, soft=False)
            self._slots.append(start_slot(self._held, self._config, name, here))
        if not self._slots:
            raise ClusterError(
                "all slots of the run died, and no other one can be started; the last checkpoint is intact: go on with "
                "--resume"
            )

    def _await(self, fewest: int, until: float | None = None) -> None:
        """Waits until so many slots are ready, or until a moment of `time.monotonic`.

        Raises `ClusterError` after `slots.placement_timeout_s`.
        """
        slots = self._config.slots
        deadline = time.monotonic() + slots.placement_timeout_s
        tries = 0
        while len(self.ready) < fewest and (until is None or time.monotonic() < until):
            self._wait([], deadline if until is None else min(deadline, until))
            if len(self._slots) < fewest:
                tries += 1
                if not self.policy.tries_again(tries):
                    raise ClusterError(
                        f"slots died {tries} times while they started; look at the actors in the Ray dashboard, and "
                        "at memory and GPUs of their nodes"
                    )
                self._start(fewest - len(self._slots))
            if len(self.ready) < fewest and time.monotonic() >= deadline:
                free = ray.available_resources()
                gib = free.get("memory", 0) / 2**30
                raise ClusterError(
                    f"{len(self.ready)} of {fewest} slots were up after {slots.placement_timeout_s:g} s (free "
                    f"now: {free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU, {gib:.1f} GiB); "
                    "raise slots.placement_timeout_s or free what other jobs hold"
                )

    def _wait(self, running: list[ray.ObjectRef], deadline: float | None) -> list[ray.ObjectRef]:
        """Waits for anything to happen; returns which of `running` arrived. Slots that have started become ready."""
        starting = {slot.starting: slot for slot in self._slots if slot.starting is not None}
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        refs = [*running, *starting]
        if not refs:
            return []
        arrived, _ = ray.wait(refs, num_returns=1, timeout=timeout, fetch_local=False)
        more, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        for ref in dict.fromkeys([*arrived, *more]):
            if ref in starting:
                slot = starting[ref]
                try:
                    vector = fetch(ref)
                except DEATHS:
                    self._lose(slot)
                    continue
                slot.starting = None
                # Calls of one caller reach an actor in their order.
                for method, arguments in self._told:
                    slot.call(method, *arguments)
                if not len(self.vector):
                    self.vector = vector
        return [ref for ref in dict.fromkeys([*arrived, *more]) if ref not in starting]

    def _settle(self, work: _Work, ref: ray.ObjectRef) -> None:
        slot, index, payload = work.running.pop(ref)
        clients = work.outcomes[index].clients
        try:
            work.outcomes[index] = Outcome(clients, slot, fetch(ref), payload)
        except DEATHS:
            self._lose(slot)
            work.attempts[index] += 1
            if self.policy.tries_again(work.attempts[index]) and not work.stopped:
                work.queue.append(index)
                if self._config.failures.replace:
                    self._start(1)
            else:
                work.outcomes[index] = Outcome(clients, None, lost=DIED)

    def _stop(self, work: _Work) -> None:
        """Lets nobody begin any more, and tells those at work to return what they have."""
        work.stopped = True
        for index in work.queue:
            work.outcomes[index] = Outcome(work.outcomes[index].clients, None, lost=LATE)
        work.queue.clear()
        for slot, _, _ in work.running.values():
            slot.stop(self._calls)

    def _lose(self, slot: Slot) -> None:
        """Takes a slot out of the pool; it may only be unreachable, and must not go on holding its place."""
        if slot in self._slots:
            self._slots.remove(slot)
            slot.kill()

    def _any_starting(self) -> bool:
        return any(slot.starting is not None for slot in self._slots)


def missing_clients(outcomes: list[Outcome]) -> Counter[str]:
    """Why clients neither were done nor refused -> how many. For calls that return a `FitReport` or `Answers`."""
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        found = outcome.result
        answered = 0 if found is None else len(found.clients) + sum(found.refused.values())
        counts[outcome.lost or LATE] += len(outcome.clients) - answered
    return +counts


def result_of(outcome: Outcome) -> Any:
    """What a chunk's call returned, where nobody may be missing. Raises `ClusterError`."""
    if outcome.slot is None:
        raise ClusterError(
            f"the work on {', '.join(outcome.clients[:3])} was lost with every slot that tried it; the last checkpoint "
            "is intact: go on with --resume"
        )
    return outcome.result


def into_chunks(cohort: list[str], slots: int) -> list[list[str]]:
    """One chunk of clients per slot, dealt round robin; never an empty chunk."""
    return [chunk for index in range(slots) if (chunk := cohort[index::slots])]
