"""The pool of sites: what the loop of rounds sees where clients are on machines of their own.

It asks sites through the gate (`coordinator.gate`), which is an actor of its own, as slots are asked; sites ask the
gate through doors (`actors.doors`). A slot without clients does what needs the model alone: exporting it, looking at
unseen people.
"""

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedtalk_ray.actors.connection import actor_name
from fedtalk_ray.actors.doors import Doors, answer_sites, open_doors
from fedtalk_ray.actors.pool import Outcome, SlotPool
from fedtalk_ray.actors.ray_errors import DEATHS, RoundLost, fetch, first_line
from fedtalk_ray.actors.slot import Slot
from fedtalk_ray.coordinator.gate import Gate
from fedtalk_ray.coordinator.offer import conditions_of
from fedtalk_ray.enrolment.coordinator_files import CoordinatorFiles
from fedtalk_ray.enrolment.membership import later, open_membership
from fedtalk_ray.errors import ClusterError, RunError
from fedtalk_ray.federation.failure_policy import FailurePolicy
from fedtalk_ray.federation.roster import SignedRoster, found_federation, nonce_of
from fedtalk_ray.federation.secure_aggregator import limits_of
from fedtalk_ray.model.embedded import EMBEDDED
from fedtalk_ray.outputs import write_synced
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import Manifest

PATIENCE_S = 30.0
"""Seconds that a round waits for sites beyond those that it needs."""

NO_CLIENTS = "fedtalk_ray.actors.client:slot_without_clients"


class GateProcess:
    """The gate, in a process of the cluster: asked by the run and, through doors, by sites."""

    def __init__(self, files: CoordinatorFiles, served: Path, late_after: float) -> None:
        self._gate = Gate(files, served, late_after)

    async def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """As a slot's."""
        return await self._gate.call(method, *arguments, **keywords)

    async def ask(self, method: str, *arguments: Any) -> Any:
        """What a site asks of it."""
        return await answer_sites(self._gate, method, *arguments)


_GateActor: Any = ray.remote(GateProcess)

MOST_CALLS = 20_000
"""Calls to the gate under way; each site that waits for its next order has one."""


@dataclass(frozen=True)
class Entrance:
    """The gate of one run, and its doors."""

    gate: Slot
    doors: Doors

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the gate says to the run. Raises `RoundLost` where it is gone."""
        try:
            return fetch(self.gate.call(method, *arguments))
        except DEATHS as error:
            raise _gate_lost(error) from error

    def members(self) -> bytes:
        """The newest list, as the authority signed it. Raises `RoundLost` where the gate is gone, `ClusterError` where
        all doors are closed."""
        self.doors.check()
        found: bytes = self.ask("newest_members")
        return found

    def close(self) -> None:
        try:
            self.doors.close()
        finally:
            self.gate.kill()


@dataclass(frozen=True)
class Coordinator:
    """Where the coordinator listens, by how many doors, and how long it waits for sites. files: what the authority gave
    it."""

    files: CoordinatorFiles
    host: str = "0.0.0.0"
    port: int = 8443
    late_after: float = 600.0
    doors: int = 1

    def open(self, config: TrainConfig) -> Entrance:
        """The gate, and doors that listen from now on. Raises `ClusterError` where they cannot."""
        node = ray.get_runtime_context().get_node_id()
        served = RunFolder(Path(config.run)).served
        gate = actor_name(config.run, "gate")
        actor = _GateActor.options(
            name=gate,
            num_cpus=0,
            max_concurrency=MOST_CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(self.files, served, self.late_after)
        names = partial(actor_name, config.run, "door")
        doors = open_doors(gate, self.files, served, self.host, self.port, self.doors, node, names)
        return Entrance(Slot(actor, node), doors)


class SitePool:
    """The sites of one run, beside one slot of the coordinator's own."""

    def __init__(
        self, config: TrainConfig, coordinator: Coordinator, entrance: Entrance, manifest: Manifest, members: bytes
    ) -> None:
        """manifest: of the shards of unseen people, prepared as the sites' clips are to be. members: the signed list by
        which the population was drawn."""
        self._config, self._entrance = config, entrance
        self._run = RunFolder(Path(config.run))
        alone = config.model_copy(update={"slots": config.slots.model_copy(update={"count": 1, "at_least": None})})
        self._local = SlotPool(alone, NO_CLIENTS)
        self._authority = coordinator.files.authority_key
        self.sites: dict[str, int] | None = None
        self._listed = list(open_membership(members, self._authority).roster().clients)
        again = self._run.federation.exists()
        nonce = nonce_of(self._run) if again else os.urandom(16)
        model = None if config.pretrained in (None, EMBEDDED) else config.pretrained
        conditions = json.dumps(conditions_of(manifest))
        name = entrance.ask("offer", nonce, config.model_dump_json(), conditions, model, self._run.coordinator_log)
        if again:
            if name != SignedRoster(self._run).name():
                self.close()
                raise RunError(
                    f"{config.run} began with another model, or with shards that were prepared otherwise; put them back"
                )
            later(self._run.members.read_bytes(), members, self._authority)
        else:
            write_synced(self._run.server_key, coordinator.files.server_key.read_bytes())
        found_federation(self._run, name, nonce, self._authority, members)

    @property
    def policy(self) -> FailurePolicy:
        return self._local.policy

    @property
    def vector(self) -> np.ndarray:
        """The shared vector before the phase's first round, float32 [D]."""
        return self._local.vector

    @vector.setter
    def vector(self, value: np.ndarray) -> None:
        self._local.vector = value

    @property
    def ready(self) -> list[Slot]:
        """The run's own slot."""
        return self._local.ready

    def away(self, cohort: int) -> Collection[str]:
        """Members that are not on line, or none any more. Waits until as many are on line as a sum needs, and a little
        for a whole cohort of so many. Raises `ClusterError` after `slots.placement_timeout_s`."""
        newest, held = self._entrance.members(), self._run.members.read_bytes()
        if newest != held:
            later(held, newest, self._authority)
            write_synced(self._run.members, newest)
        fewest, timeout = limits_of(self._config.privacy).floor, self._config.slots.placement_timeout_s
        wanted = min(cohort, len(self._listed))
        found = self._entrance.ask("on_line", self._listed, wanted, min(timeout, PATIENCE_S))
        if len(found) < fewest:
            found = self._entrance.ask("on_line", self._listed, fewest, timeout)
        self.sites = {"on_line": len(found), "members": len(self._listed)}
        if len(found) < fewest:
            raise ClusterError(
                f"{len(found)} of {fewest} sites were on line after {timeout:g} s "
                f"({', '.join(found[:8]) or 'none'}); start the others, or raise slots.placement_timeout_s; the last "
                "checkpoint is intact: go on with --resume"
            )
        return set(self._listed) - set(found)

    def fit_to(self, clients: int) -> None:
        """Before a round: the run's own slot is there, or another one in its place."""
        self._local.fit_to(1)

    def run(self, method: str, clients: list[str], *arguments: Any, enough: int | None = None, **how: Any) -> Any:
        """As `SlotPool.run`: "train" asks the sites, all at once; everything else the slot."""
        if method != "train":
            return self._local.run(method, clients, *arguments, **how)
        shared, plan = arguments
        return [Outcome(clients, self._entrance.gate, self._entrance.ask("train", clients, shared, plan, enough))]

    def gather(self, calls: list[tuple[Slot, ray.ObjectRef]]) -> list[Any]:
        """The results of calls to the gate, in order."""
        try:
            return [fetch(ref) for _, ref in calls]
        except DEATHS as error:
            raise _gate_lost(error) from error

    def has(self, slot: Slot) -> bool:
        """Whether the slot is still there."""
        return slot is self._entrance.gate or self._local.has(slot)

    def tell_all(self, method: str, *arguments: Any) -> None:
        """As `SlotPool.tell_all`. Sites are told by their next order what phases ended with."""
        self._local.tell_all(method, *arguments)
        if method == "enter":
            self._entrance.ask("take_results", dict(arguments[1]))

    def one(self, method: str, *arguments: Any) -> Any:
        """As `SlotPool.one`."""
        return self._local.one(method, *arguments)

    def close(self) -> None:
        """The gate stays: sites fetch the released model there."""
        self._local.close()


def _gate_lost(error: Exception) -> RoundLost:
    return RoundLost(
        f"the gate to the sites was lost ({first_line(error)}); the last checkpoint is intact: go on with --resume"
    )
