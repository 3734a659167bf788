"""What crosses between a door and its gate: answers, and reasons as they were, without what Ray adds to raised ones."""

import asyncio
import pickle
import socket
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayError

from fedtalk_ray.actors.doors import TOLD, GateElsewhere, answer_sites, reserve
from fedtalk_ray.coordinator.gate import SITES_ASK, Conflict, Gate, GateAway
from fedtalk_ray.coordinator.http import GateAsked
from fedtalk_ray.coordinator.quota import Overfull
from fedtalk_ray.enrolment.caller import OldRequest


class Asked:
    """A gate that says what it is told to say."""

    def __init__(self, says: Any) -> None:
        self._says = says

    async def next_order(self, site: str) -> Any:
        if isinstance(self._says, Exception):
            raise self._says
        return self._says


def answered(says: Any, method: str = "next_order") -> Any:
    return pickle.loads(pickle.dumps(asyncio.run(answer_sites(Asked(says), method, "s1"))))


def test_what_the_gate_says_of_a_request_crosses_as_it_was() -> None:
    assert answered(b"order") == b"order"
    for error in (Conflict(), Overfull("too much"), OldRequest("a request that came before", 7)):
        found = answered(error)
        assert type(found) is type(error) and isinstance(found, TOLD) and str(found) == str(error)
    assert answered(OldRequest("a request that came before", 7)).last == 7
    with pytest.raises(KeyError):
        answered(KeyError("x"))


def test_a_door_asks_what_its_application_asks_and_not_what_the_run_alone_asks() -> None:
    for method in (*(Gate.ASKED - set(SITES_ASK)), "membership", "__init__"):
        with pytest.raises(ValueError, match="doors do not ask"):
            answered(b"", method)
    asks = {name for name in vars(GateAsked) if not name.startswith("_")}
    assert asks == set(SITES_ASK)
    assert all(callable(getattr(kind, name)) for name in asks for kind in (Gate, GateElsewhere))


class Actor:
    """What Ray makes of a gate's actor, as far as a door sees it."""

    def __init__(self, result: Any) -> None:
        self.ask, self._result = self, result

    def options(self, name: str) -> "Actor":
        return self

    async def remote(self, method: str, *arguments: Any) -> Any:
        if isinstance(self._result, RayError):
            raise self._result
        return method, arguments, self._result


def test_a_door_asks_its_gate_and_says_when_that_is_gone() -> None:
    assert asyncio.run(GateElsewhere(Actor("x")).room_for("s1", 3, "mask")) == ("room_for", ("s1", 3, "mask"), "x")
    with pytest.raises(GateAway):
        asyncio.run(GateElsewhere(Actor(ActorDiedError())).next_order("s1"))


def test_doors_share_a_port_and_nobody_else_gets_it() -> None:
    with reserve("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        # Held by one that does not listen, while no door is there.
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", port))
        with reserve("127.0.0.1", port, listens=True) as first, reserve("127.0.0.1", port, listens=True) as second:
            first.listen(), second.listen()
            with pytest.raises(OSError, match="in use"):
                socket.create_server(("127.0.0.1", port))
    # The next coordinator can listen at once, by the check and by the doors.
    socket.create_server(("127.0.0.1", port)).close()
    with reserve("127.0.0.1", port), reserve("127.0.0.1", port, listens=True) as again:
        again.listen()
