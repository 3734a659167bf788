"""The pool of client slots, and the parameter server, as Ray actors. Nothing else makes actors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.actors.cluster import check_fits
from fedtalk_ray.config import TrainConfig
from fedtalk_ray.errors import ClusterError, UserError
from fedtalk_ray.federation.checkpoint import Checkpoint, config_fingerprint, load_checkpoint, save_checkpoint
from fedtalk_ray.federation.cohort import into_chunks
from fedtalk_ray.federation.server import ParameterServer

DEATHS = (RayActorError, OutOfMemoryError)
"""What a caller sees of an actor that is gone: it died, or its node ran out of memory and Ray killed it."""

SlotActor: Any = ray.remote(ClientSlot)
ServerActor: Any = ray.remote(ParameterServer)


@dataclass(frozen=True, eq=False)
class Seat:
    """A slot and the clients that it stands for throughout one round."""

    slot: Any
    clients: list[str]


class SlotPool:
    """`config.slots.count` client slots that are up and hold the model."""

    def __init__(self, config: TrainConfig) -> None:
        """Raises `ClusterError` when the slots cannot be placed, and the slot's own error when it cannot start."""
        slots = config.slots
        check_fits(slots)
        # No restarts and no retries: a slot that came back would hold nothing, and the round loop must decide.
        actor = SlotActor.options(num_gpus=slots.num_gpus, num_cpus=slots.num_cpus, max_restarts=0, max_task_retries=0)
        self._slots = [actor.remote(config) for _ in range(slots.count)]
        try:
            self.vector = fetch([slot.start.remote() for slot in self._slots], slots.placement_timeout_s)[0]
        except GetTimeoutError as error:
            free = ray.available_resources()
            raise ClusterError(
                f"{slots.count} slots were not up after {slots.placement_timeout_s:g} s (free now: "
                f"{free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU); raise slots.placement_timeout_s or free "
                "what other jobs hold"
            ) from error

    def map(self, method: str, clients: list[str], *arguments: Any, label: str | None = None) -> list[ray.ObjectRef]:
        """Deals the clients over the slots and calls `method(chunk, *arguments)` on each; results in slot order.

        `label` is the call's name in the Ray dashboard.
        """
        chunks = into_chunks(clients, len(self._slots))
        return [
            getattr(slot, method).options(name=label or f"slot.{method}").remote(chunk, *arguments)
            for slot, chunk in zip(self._slots, chunks, strict=False)
        ]

    def seats(self, clients: list[str]) -> list[Seat]:
        """The clients dealt over the slots, for rounds of several steps in which a client stays where it is."""
        return [
            Seat(slot, chunk) for slot, chunk in zip(self._slots, into_chunks(clients, len(self._slots)), strict=False)
        ]

    def has(self, seat: Seat) -> bool:
        """Whether the seat's slot is still there."""
        return seat.slot in self._slots

    def result_of(self, seat: Seat, ref: ray.ObjectRef) -> Any:
        """A call's result, or None when the slot died; it then leaves the pool, and the others go on.

        Raises `ClusterError` when no slot is left.
        """
        try:
            return ray.get(ref)
        except DEATHS as error:
            if self.has(seat):
                self._slots.remove(seat.slot)
            if not self._slots:
                raise ClusterError(
                    "all slots of the run died; the last checkpoint is intact: go on with --resume"
                ) from error
            return None
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise

    def each(self, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """Calls `method(*arguments)` on every slot."""
        return [getattr(slot, method).remote(*arguments) for slot in self._slots]

    def one(self, method: str, *arguments: Any, slot: int = 0) -> ray.ObjectRef:
        """Calls `method(*arguments)` on one slot, for work that any can do."""
        return getattr(self._slots[slot % len(self._slots)], method).remote(*arguments)

    def close(self) -> None:
        for slot in self._slots:
            ray.kill(slot)


def start_server(config: TrainConfig, folder: Path, initial: np.ndarray, rate: float = 1.0) -> Any:
    """The parameter server's actor, at its newest checkpoint, or at round 0 with the `initial` parameters float32 [D].

    It comes back by itself when it dies, from its checkpoint; applying a round twice is harmless. The parameters reach
    it through the first checkpoint: large arguments of an actor may be gone by the time it has to start again.
    rate: the probability with which a client is in a cohort, for the ledger.
    """
    fingerprint = config_fingerprint(config)
    if load_checkpoint(folder, fingerprint) is None:
        save_checkpoint(folder, Checkpoint(0, initial, {}), fingerprint)
    actor = ServerActor.options(num_cpus=0, max_restarts=-1, max_task_retries=3)
    return actor.remote(str(folder), config, fingerprint, rate)


def fetch(refs: Any, timeout: float | None = None) -> Any:
    """`ray.get`, with a dead actor or a user's error inside one turned into one clear line."""
    try:
        return ray.get(refs, timeout=timeout)
    except (RayTaskError, *DEATHS) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(error, RayTaskError) and not isinstance(cause, DEATHS):
            raise
        # A slot that died while it worked reaches us through the server's call, which waited for its update.
        died = str(cause if isinstance(cause, DEATHS) else error).strip().splitlines()
        raise ClusterError(
            f"an actor of the run died ({died[0] if died else 'no reason given'}); the last checkpoint is intact: "
            "go on with --resume"
        ) from error
