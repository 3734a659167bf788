"""Doors: processes that speak HTTPS with sites for one gate. They hold nothing, so that any of them may die.

All listen at the same port, among which the system deals connections out. Ray starts one that died anew; sites whose
connection broke ask again, and the gate knows what it has heard of them.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedtalk_ray.actors.ray_errors import DEATHS, fetch
from fedtalk_ray.coordinator.gate import SITES_ASK, Conflict, GateAway, Overfull, Unasked
from fedtalk_ray.coordinator.http import open_door
from fedtalk_ray.coordinator.served import ServedFiles
from fedtalk_ray.enrolment.caller import UnknownCaller
from fedtalk_ray.enrolment.coordinator_files import CoordinatorFiles
from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.errors import ClusterError
from fedtalk_ray.privacy.wire import MalformedMessage

TOLD = (UnknownCaller, Unasked, Conflict, Overfull, EnrolmentError, MalformedMessage)
"""What the gate raises about a site's request. It crosses as a value: raised, Ray would put a traceback into its
text."""


async def answer_sites(gate: Any, method: str, *arguments: Any) -> Any:
    """In the gate's process: what a site asks, or why it is not answered."""
    if method not in SITES_ASK:
        raise ValueError(f"sites do not ask the gate for {method!r}")
    try:
        return await getattr(gate, method)(*arguments)
    except TOLD as error:
        return error


class GateElsewhere:
    """The gate as a door has it (`coordinator.http.SitesAsk`)."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, method: str) -> Any:
        if method not in SITES_ASK:
            raise AttributeError(method)

        async def ask(*arguments: Any) -> Any:
            try:
                found = await self._actor.ask.options(name=f"gate.{method}").remote(method, *arguments)
            except DEATHS as error:
                raise GateAway from error
            if isinstance(found, Exception):
                raise found
            return found

        return ask


class DoorProcess:
    """One door."""

    def __init__(self, gate: Any, files: CoordinatorFiles, served: Path, host: str, port: int) -> None:
        """gate: its actor."""
        self._gate: Any = GateElsewhere(gate)
        self._files, self._served = files, ServedFiles(served)
        self._listening = reserve(host, port)
        self._listening.listen(1024)

    async def port(self) -> int:
        """At which it listens."""
        return int(self._listening.getsockname()[1])

    async def keep_open(self) -> None:
        """Lets sites in for as long as the process lives."""
        await open_door(self._gate, self._files, self._served, self._listening).keep_open()


_DoorActor: Any = ray.remote(DoorProcess)

CLOSED_S = 10.0
"""Seconds to wait at most until doors that are to close have let go of their port."""


@dataclass(frozen=True)
class Doors:
    """Doors at one port. actors: one each."""

    actors: tuple[Any, ...]
    port: int
    _open: tuple[ray.ObjectRef, ...]

    def close(self) -> None:
        """When it returns another coordinator may listen there."""
        for call in self._open:
            ray.cancel(call)
        ray.wait(list(self._open), num_returns=len(self._open), timeout=CLOSED_S)
        for actor in self.actors:
            ray.kill(actor)


def open_doors(
    gate: Any,
    files: CoordinatorFiles,
    served: Path,
    host: str,
    port: int,
    count: int,
    node: str,
    name: Callable[[], str],
) -> Doors:
    """So many doors on that node, which listen from now on.

    name: gives each actor its. Raises `ClusterError` where nobody can listen.
    """
    # Alone for a moment: other programs that share ports would not be noticed later.
    try:
        socket.create_server((host, port)).close()
        held = reserve(host, port)
    except OSError as error:
        raise ClusterError(f"nobody can listen at {host}:{port} ({error.strerror}); give another --port") from error
    with held:
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
            fetch(actor.port.remote())
    # It never returns; Ray asks it again of a door that it starts anew.
    return Doors(actors, port, tuple(actor.keep_open.remote() for actor in actors))


def reserve(host: str, port: int) -> socket.socket:
    """A socket at that address that others of this user may share."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made
