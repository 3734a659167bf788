"""A client slot as Ray sees it: a process on a node, found by name, that holds one plain object.

The process itself imports the class it is to hold, so that a driver starts without torch, diffusers and peft, which
take longer to import than Ray to start.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import ray

from fedtalk_ray.actors.connection import actor_name
from fedtalk_ray.errors import RunError
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.tracking.prometheus import SlotMemory

CLIENT_SLOT = "fedtalk_ray.actors.client:ClientSlot"
CONTROL = "control"


class SlotProcess:
    """Holds an object and calls its methods; says on a thread of its own what it is at, and hears there to stop."""

    def __init__(self, held: str | type, config: TrainConfig, name: str) -> None:
        """held: a class made with the configuration, or where it is, as "module:Name"; its `ASKED` lists what may be
        called. name: the actor's."""
        if isinstance(held, str):
            module, _, kind = held.partition(":")
            made: Any = getattr(import_module(module), kind)
        else:
            made = held
        self._held = made(config)
        self._run = config.run
        self._at = ""
        self._memory = SlotMemory(config.run, name)

    def __repr__(self) -> str:
        """What the dashboard shows, and Ray before each line that the slot prints."""
        return f"{type(self._held).__name__}({self._run})"

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """What the held object's `ASKED` lists, and nothing else of it. Raises `RunError`."""
        if method not in self._held.ASKED:
            raise RunError(f"a slot is not asked for {method!r}; there are {', '.join(sorted(self._held.ASKED))}")
        # What it works on is said anew by calls that turn to a client.
        self._held.working_on = ""
        self._at = method
        try:
            return getattr(self._held, method)(*arguments, **keywords)
        finally:
            self._at = ""
            self._memory.observe()

    @ray.method(concurrency_group=CONTROL)
    def stop(self, call: int) -> None:
        self._held.stop(call)

    @ray.method(concurrency_group=CONTROL)
    def doing(self) -> tuple[str, str]:
        """The method it is at, empty when idle, and what that is working on: the round and the client."""
        return self._at, self._held.working_on if self._at else ""


_SlotActor: Any = ray.remote(concurrency_groups={CONTROL: 1})(SlotProcess)


@dataclass(eq=False)
class Slot:
    """One slot. node: its node's id. starting: its first call, until that returned."""

    actor: Any
    node: str
    starting: ray.ObjectRef | None = None

    def call(self, method: str, *arguments: Any, label: str | None = None, returns: int = 1, **keywords: Any) -> Any:
        """Starts `method(*arguments, **keywords)`; one reference for each thing it returns.

        label: the call's name in the dashboard. Never one that tells the round: every process of a Ray cluster keeps
        a series of metrics for every name that it ever saw.
        """
        options = {"name": label or f"slot.{method}", "num_returns": returns}
        return self.actor.call.options(**options).remote(method, *arguments, **keywords)

    def stop(self, call: int) -> None:
        """Tells the slot, whatever it is at, to end the call of that number."""
        self.actor.stop.options(name="slot.stop").remote(call)

    def kill(self) -> None:
        ray.kill(self.actor)


def start_slot(held: str | type, config: TrainConfig, node: str, strategy: Any) -> Slot:
    """A new slot that begins with `start()`, on the node that Ray's scheduling `strategy` names.

    No restarts and no retries: a slot that came back would hold nothing, and the pool must decide.
    """
    slots = config.slots
    name = actor_name(config.run, "slot")
    actor = _SlotActor.options(
        name=name,
        num_gpus=slots.num_gpus,
        num_cpus=slots.num_cpus,
        memory=slots.memory_mb << 20 or None,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy=strategy,
    ).remote(held, config, name)
    slot = Slot(actor, node)
    slot.starting = slot.call("start")
    return slot
