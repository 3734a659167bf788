"""Doors: processes that speak HTTPS with sites for one gate. No state is in them, so that any of them may die.

All listen at the same port, among which the system deals connections out. Ray starts one that died anew; sites whose
connection broke ask again, and the gate knows what it has heard of them. What a door may ask of the gate keeps mistakes
away, not a door that was taken over: it is a process of the cluster, and has the TLS key.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedtalk_ray.actors.ray_errors import DEATHS, fetch, first_line
from fedtalk_ray.coordinator.gate import SITES_ASK, Conflict, GateAway, Unasked
from fedtalk_ray.coordinator.http import open_door
from fedtalk_ray.coordinator.quota import Overfull
from fedtalk_ray.coordinator.served import ServedFiles
from fedtalk_ray.enrolment.caller import Called, OldRequest
from fedtalk_ray.enrolment.coordinator_files import CoordinatorFiles
from fedtalk_ray.errors import ClusterError
from fedtalk_ray.privacy.wire import MalformedMessage

TOLD = (OldRequest, Unasked, Conflict, Overfull, MalformedMessage)
"""What the gate raises about a site's request. It crosses as a value: raised, Ray would put a traceback into its
text."""


async def answer_sites(gate: Any, method: str, *arguments: Any) -> Any:
    """In the gate's process: what a door asks for a site, or why it is not answered."""
    if method not in SITES_ASK:
        raise ValueError(f"doors do not ask the gate for {method!r}")
    try:
        return await getattr(gate, method)(*arguments)
    except TOLD as error:
        return error


class GateElsewhere:
    """The gate as a door has it (`coordinator.http.GateAsked`)."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def epoch(self) -> bytes:
        return await self._ask("epoch")

    async def hear(self, called: Called) -> None:
        await self._ask("hear", called)

    async def offered(self) -> bytes | None:
        return await self._ask("offered")

    async def next_order(self, site: str) -> bytes | None:
        return await self._ask("next_order", site)

    async def room_for(self, site: str, exchange: int, stage: str) -> int:
        return await self._ask("room_for", site, exchange, stage)

    async def take(self, site: str, exchange: int, stage: str, body: bytes) -> None:
        await self._ask("take", site, exchange, stage, body)

    async def released(self) -> bytes | None:
        return await self._ask("released")

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            found = await self._actor.ask.options(name=f"gate.{method}").remote(method, *arguments)
        except DEATHS as error:
            raise GateAway from error
        if isinstance(found, Exception):
            raise found
        return found


class DoorProcess:
    """One door. It listens once it can answer: one that cannot is away, and leaves the port to the others."""

    def __init__(self, gate: str, files: CoordinatorFiles, served: Path, host: str, port: int) -> None:
        """gate: its actor's name."""
        self._listening = reserve(host, port, listens=True)
        self._door = open_door(GateElsewhere(ray.get_actor(gate)), files, ServedFiles(served), self._listening)
        self._listening.listen(1024)

    async def stand(self) -> None:
        """Returns when it listens."""

    async def keep_open(self) -> None:
        """Lets sites in for as long as the process lives."""
        await self._door.keep_open()


_DoorActor: Any = ray.remote(DoorProcess)

CLOSED_S = 10.0
"""Seconds to wait at most until doors that are to close have let go of their port."""


@dataclass(frozen=True)
class Doors:
    """Doors at one port. actors: one each."""

    actors: tuple[Any, ...]
    port: int
    _open: tuple[ray.ObjectRef, ...]
    _held: socket.socket
    """Bound to the port and not listening: while no door is there no other program takes it."""

    def check(self) -> None:
        """Raises `ClusterError` where every door is closed for good: Ray starts those anew that died, and not those
        that cannot begin."""
        closed, still = ray.wait(list(self._open), num_returns=len(self._open), timeout=0)
        if still:
            return
        try:
            ray.get(closed[0])
        except Exception as error:  # whatever a door ended by
            raise ClusterError(
                f"no door at port {self.port} is open any more ({first_line(error)}); go on with --resume"
            ) from error

    def close(self) -> None:
        """When it returns another coordinator may listen there, unless a door hangs."""
        for call in self._open:
            ray.cancel(call)
        ray.wait(list(self._open), num_returns=len(self._open), timeout=CLOSED_S)
        for actor in self.actors:
            ray.kill(actor)
        self._held.close()


def open_doors(
    gate: str,
    files: CoordinatorFiles,
    served: Path,
    host: str,
    port: int,
    count: int,
    node: str,
    name: Callable[[], str],
) -> Doors:
    """So many doors on that node, which listen from now on.

    gate: its actor's name. name: gives each door's. Raises `ClusterError` where nobody can listen.
    """
    try:
        # Alone for a moment: another coordinator of this user would share the port, and not be noticed later.
        socket.create_server((host, port), family=_family(host)).close()
        held = reserve(host, port)
    except OSError as error:
        raise ClusterError(f"nobody can listen at {host}:{port} ({error.strerror}); give another --port") from error
    port = int(held.getsockname()[1])
    actors = tuple(
        _DoorActor.options(
            name=name(),
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(gate, files, served, host, port)
        for _ in range(count)
    )
    for actor in actors:
        fetch(actor.stand.remote())
    # It never returns; Ray asks it again of a door that it starts anew.
    return Doors(actors, port, tuple(actor.keep_open.remote() for actor in actors), held)


def reserve(host: str, port: int, listens: bool = False) -> socket.socket:
    """A socket at that address that others of this user, made by this, may share, and nobody else. listens: it is to do
    so, and connections that it had do not keep the port for a minute."""
    made = socket.socket(_family(host))
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if listens:
            # Not of one that only holds the port: any program could listen beside it.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def _family(host: str) -> socket.AddressFamily:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
