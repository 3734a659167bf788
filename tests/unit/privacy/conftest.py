"""Drives the secure protocol stage by stage, and lets a test stand between its two sides: frames are plain bytes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
import pytest

from fedtalk_ray import messages
from fedtalk_ray.messages import Plan
from fedtalk_ray.privacy import protocol, wire
from fedtalk_ray.privacy.keys import Roster, SigningKey
from fedtalk_ray.privacy.protocol import STAGES, Aborted, Code, Frame, Limits, Rejected
from fedtalk_ray.privacy.secure_client import SecureClient
from fedtalk_ray.privacy.secure_server import SecureServer

OUTSIDER = "z-outsider"
"""Enrolled in every roster, drawn into no cohort."""


class People:
    """Everybody's long-term keys, the clients' and the server's."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(sorted(names))
        self.keys = {name: SigningKey.generate() for name in (*self.names, OUTSIDER)}
        self.server = SigningKey.generate()

    @property
    def roster(self) -> Roster:
        return Roster(self._clients, self.server.public)

    @cached_property
    def _clients(self) -> dict[str, bytes]:
        return {name: key.public for name, key in self.keys.items()}


class Exchange:
    """One exchange between a server, whatever has the methods of a `SecureServer`, and `people.names`.

    inbox: what the server sent last, for each client that is still there. sent, heard: every answer of a client and
    what it answered to, by stage and name.
    """

    def __init__(
        self, people: People, plan: Plan, limits: Limits, server: Any, vectors: Mapping[str, np.ndarray]
    ) -> None:
        self.people, self.plan, self.limits, self.server = people, plan, limits, server
        self.context = protocol.context_of(plan, people.roster)
        self.clients = {
            name: SecureClient(name, people.keys[name], people.roster, plan, limits) for name in plan.cohort
        }
        self.vectors = dict(vectors)
        self.inbox: dict[str, bytes] = dict.fromkeys(plan.cohort, b"")
        self.sent: dict[tuple[str, str], bytes] = {}
        self.heard: dict[tuple[str, str], bytes] = {}
        self.questions: Counter[tuple[str, str]] = Counter()

    def ask(self, name: str, frame: bytes | None = None, stage: str | None = None) -> bytes:
        """A client's answer to a frame (the one in its inbox) for a stage (the open one). Raises `Aborted`."""
        stage = stage or self.server.stage
        frame = self.inbox[name] if frame is None else frame
        answer = self._call(name, frame, stage)
        self.questions[stage, name] += 1
        assert self.questions[stage, name] == 1, f"{name} answered {stage} twice"
        self.sent[stage, name], self.heard[stage, name] = answer, frame
        return answer

    def try_ask(self, name: str, frame: bytes | None = None, stage: str | None = None) -> bytes | None:
        """As `ask`, or None where the client refuses."""
        with contextlib.suppress(Aborted):
            return self.ask(name, frame, stage)
        return None

    def refusal(self, name: str, frame: bytes, stage: str) -> Code | None:
        """Why a client refuses; None where it answers, as often as it likes."""
        try:
            self._call(name, frame, stage)
        except Aborted as error:
            return error.code
        return None

    def _call(self, name: str, frame: bytes, stage: str) -> bytes:
        arguments = {"advertise": (), "mask": (frame, self.vectors[name])}.get(stage, (frame,))
        return bytes(getattr(self.clients[name], stage)(*arguments))

    def give(self, frame: Any) -> Code | None:
        """Hands the server a frame; the code where it was refused."""
        try:
            self.server.receive(frame)
        except Rejected as error:
            return error.code
        return None

    def close(self) -> None:
        """Closes the open stage. Raises `Aborted`."""
        self.inbox = self.server.close()

    def step(self, absent: Collection[str] = ()) -> None:
        """One stage in which everybody but `absent` answers."""
        for name in sorted(self.inbox.keys() - set(absent)):
            if (self.server.stage, name) not in self.sent:
                assert self.give(self.ask(name)) is None
        self.close()

    def until(self, stage: str, absent: Mapping[str, Collection[str]] | None = None) -> Exchange:
        """Goes on until that stage is open."""
        while self.server.stage != stage:
            self.step((absent or {}).get(self.server.stage, ()))
        return self

    def finish(self, absent: Mapping[str, Collection[str]] | None = None) -> tuple[str, ...]:
        """Goes on to the end, checks the sum, and returns whose it is."""
        while self.server.stage in STAGES:
            self.step((absent or {}).get(self.server.stage, ()))
        self.check_sum()
        return tuple(self.server.survivors)

    def check_sum(self) -> None:
        """The opened sum is the survivors' plain sum, computed in 64 bits and reduced at the end."""
        plain = sum(self.vectors[name].astype(np.uint64) for name in self.server.survivors) % np.uint64(2**32)
        assert self.server.total().tolist() == plain.tolist()

    @staticmethod
    def opened(frame: bytes) -> Any:
        """The message in a frame, whoever signed it."""
        outer = wire.decode(Frame, frame)
        return wire.decode(getattr(messages, outer.kind), outer.body)

    def signed(self, message: Any, key: SigningKey | None = None, context: bytes | None = None) -> bytes:
        """A frame of any message; signed as it should be, unless another key or context is given."""
        if key is None:
            name = getattr(message, "client", None)
            key = self.people.server if name is None else self.people.keys[name]
        return protocol.seal_frame(key, context or self.context, message)

    def altered(self, frame: bytes, key: SigningKey | None = None, **changes: Any) -> bytes:
        """The same message with some fields changed, signed again."""
        return self.signed(replace(self.opened(frame), **changes), key)

    @staticmethod
    def flipped(frame: bytes, bit: int) -> bytes:
        """The frame with one bit turned over; negative numbers count from the end."""
        data = bytearray(frame)
        data[bit // 8] ^= 1 << (bit % 8)
        return bytes(data)

    def state(self) -> str:
        """Everything that the server holds, to compare before and after."""
        whole = {
            name: value.tobytes() if isinstance(value, np.ndarray) else value
            for name, value in vars(self.server).items()
        }
        return repr(whole)

    def abort_of(self, name: str, frame: bytes, stage: str | None = None) -> Code:
        """The code with which a client ends the exchange on a frame; fails when it answers. It stays silent after."""
        with pytest.raises(Aborted) as caught:
            self.ask(name, frame, stage)
        self.check_silent(name)
        return caught.value.code

    def abort_of_twin(self, name: str, frame: bytes, stage: str | None = None) -> Code:
        """The same of a copy of the client, which itself goes on as if it had heard nothing."""
        client = self.clients[name]
        twin = self.clients[name] = copy(client)
        vars(twin).update({key: value.copy() for key, value in vars(client).items() if isinstance(value, dict | set)})
        try:
            return self.abort_of(name, frame, stage)
        finally:
            self.clients[name] = client

    def check_silent(self, name: str) -> None:
        """A client that is through with an exchange answers no stage, whatever frame of any client it is shown."""
        frames = {*self.inbox.values(), *self.heard.values(), b""}
        for stage in STAGES:
            for frame in frames:
                answer = None
                with contextlib.suppress(Aborted):
                    answer = self._call(name, frame, stage)
                assert answer is None


@contextlib.contextmanager
def aborts(code: Code) -> Iterator[None]:
    """What is done in here ends the exchange, for that reason."""
    with pytest.raises(Aborted) as caught:
        yield
    assert caught.value.code == code


@pytest.fixture(scope="module")
def same_frames_are_read_once() -> Iterator[None]:
    """Of a frame that many clients get, its message and whether its signature holds are found out once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "read_frame", lru_cache(2**12)(protocol.read_frame))
        patch.setattr(protocol, "verify", lru_cache(2**12)(protocol.verify))
        yield


@pytest.fixture(scope="session")
def make_exchange() -> Callable[..., Exchange]:
    return exchange_of


def people_of(count: int) -> People:
    return People(f"c{index:02}" for index in range(count))


def exchange_of(
    count: int = 5,
    *,
    length: int = 4,
    floor: int = 3,
    number: int = 1,
    people: People | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
    server: Any = None,
    plan: Plan | None = None,
    **planned: Any,
) -> Exchange:
    """An exchange of `count` clients with vectors over the whole ring. planned: what differs from a plan of zeros."""
    people = people or people_of(count)
    if plan is None:
        plan = replace(Plan("run", number, number, bytes(32), bytes(32), bytes(32), 1.0, people.names), **planned)
    if vectors is None:
        rng = np.random.default_rng([count, number, length])
        vectors = {name: rng.integers(0, 2**32, length, dtype=np.uint32) for name in plan.cohort}
    limits = Limits(floor)
    server = server or SecureServer(plan, people.server, people.roster, limits, length)
    return Exchange(people, plan, limits, server, vectors)


@cache
def past(make_exchange: Callable[..., Exchange]) -> Exchange:
    """An exchange that is over, for frames to replay."""
    exchange = make_exchange(number=1)
    exchange.finish()
    return exchange


@pytest.fixture
def exchange(make_exchange: Callable[..., Exchange]) -> Exchange:
    """The second exchange of the same five clients, of whom m_min = t = 4 must stay."""
    return make_exchange(number=2, people=past(make_exchange).people, **{"round": 1})


@pytest.fixture
def earlier(make_exchange: Callable[..., Exchange]) -> Exchange:
    return past(make_exchange)
