"""What crosses between a door and its gate: answers, and reasons as they were, without what Ray adds to raised ones."""

import asyncio
import pickle
import socket
from typing import Any

import pytest

from fedtalk_ray.actors.doors import TOLD, answer_sites, reserve
from fedtalk_ray.coordinator.gate import SITES_ASK, Conflict, Gate
from fedtalk_ray.coordinator.http import SitesAsk
from fedtalk_ray.enrolment.caller import MembershipOver, OldRequest


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
    for error in (Conflict(), MembershipOver("membership was revoked"), OldRequest("a request that came before", 7)):
        found = answered(error)
        assert type(found) is type(error) and isinstance(found, TOLD) and str(found) == str(error)
    assert answered(OldRequest("a request that came before", 7)).last == 7


def test_a_fault_of_the_gate_is_raised_as_one() -> None:
    with pytest.raises(KeyError):
        answered(KeyError("x"))


@pytest.mark.parametrize("method", [*sorted(Gate.ASKED - set(SITES_ASK)), "membership", "__init__"])
def test_what_the_run_alone_may_ask_no_door_can(method: str) -> None:
    with pytest.raises(ValueError, match="sites do not ask"):
        answered(b"", method)


def test_a_door_can_ask_all_that_its_application_asks() -> None:
    asks = {name for name in vars(SitesAsk) if not name.startswith("_")}
    assert asks == set(SITES_ASK) and all(callable(getattr(Gate, name)) for name in asks)


def test_doors_share_a_port_and_nobody_else_gets_it() -> None:
    with reserve("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with reserve("127.0.0.1", port) as second:
            first.listen(), second.listen()
            with pytest.raises(OSError, match="in use"):
                socket.create_server(("127.0.0.1", port))
