"""What both sides of the secure protocol agree on: stages, limits, contexts, signed frames and refusals.

The protocol is Bonawitz et al. 2017 in its version against an active server (signed keys, consistency round), above 100
clients over a sparse graph in the manner of Bell et al. 2020 (`graph`). A frame is `wire.encode(Frame)`: a message's
type, its bytes, and an Ed25519 signature over the round's context, the type and the bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np

from fedtalk_ray.messages import Plan
from fedtalk_ray.privacy.graph import COMPLETE_UP_TO, fewest, quorum, threshold, tolerated
from fedtalk_ray.privacy.keys import Roster, SigningKey, digest, joined, verify
from fedtalk_ray.privacy.wire import Buffer, MalformedMessage, decode, encode

PROTOCOL = b"fedtalk/3"

PRODUCTION_FLOOR = 8
"""Fewest survivors whose sum may be opened."""

STAGES = ("advertise", "share", "mask", "confirm", "unmask")
"""In order. A client that does not answer one in time has dropped out."""

Message = TypeVar("Message")


class Code(StrEnum):
    """Why a message or a round was refused; all that a log says about it."""

    MALFORMED = "malformed"
    UNKNOWN_CLIENT = "unknown client"
    BAD_SIGNATURE = "bad signature"
    WRONG_STAGE = "wrong stage"
    DUPLICATE = "duplicate"
    NOT_IN_ROUND = "not in round"
    WRONG_LENGTH = "wrong length"
    OLD_ROUND = "old round"
    NOT_PINNED = "not pinned"
    BAD_KEYS = "bad keys"
    WRONG_SHARES = "wrong shares"
    TOO_FEW = "too few"
    INCONSISTENT = "inconsistent"
    NOT_FINITE = "not finite"
    NOTHING_TO_GIVE = "nothing to give"
    RECORD_DAMAGED = "record damaged"
    CAP_REACHED = "participation cap reached"
    NOT_AGREED = "not agreed to"
    CANNOT_GO_ON = "cannot go on"
    """A client's own trouble: with its shards, its key, its ledger or its disk."""
    CANNOT_UNMASK = "cannot unmask"
    SUM_TOO_LARGE = "sum too large"
    LOST = "exchange lost"


class ProtocolError(Exception):
    """Base of the protocol's refusals. They carry a code and no figure of any client."""

    def __init__(self, code: Code, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" if self.detail else str(self.code)


class Rejected(ProtocolError):
    """One message was refused; the state is what it was before it came."""


class Aborted(ProtocolError):
    """The round is over for whoever raises this: secrets are dropped, nothing more is answered."""


@dataclass(frozen=True)
class Limits:
    """floor: fewest survivors, whatever the cohort. Below `PRODUCTION_FLOOR` only where the configuration names it
    insecure. complete_up_to: clients up to which everybody shares masks with everybody (`graph`)."""

    floor: int = PRODUCTION_FLOOR
    complete_up_to: int = COMPLETE_UP_TO

    def threshold(self, cohort: int) -> int:
        """Shamir's t among a client's holders, for a planned cohort of so many."""
        return threshold(cohort, self.complete_up_to)

    def survivors(self, cohort: int) -> int:
        """max(2n/3 + 1 rounded down, floor): fewest masked inputs that a round goes on with.

        n is the cohort as it was planned, which every signature covers: who advertised is what a server says.
        """
        return max(quorum(cohort), self.floor)

    def needed(self, cohort: int) -> int:
        """Fewest of a planned cohort who must stay for its sum to be opened as a rule. On a sparse graph, where each
        has few holders, that is four fifths: with three quarters of 256 half of all rounds are lost."""
        return self.survivors(cohort) if cohort <= self.complete_up_to else max(-(-4 * cohort // 5), self.floor)

    def tolerated(self, cohort: int) -> int:
        """Most clients of a planned cohort that may be in league."""
        return tolerated(cohort, self.complete_up_to)

    def opened(self, cohort: int) -> int:
        """Fewest clients over whom a lying server can open a sum: noise must be enough in one over so many."""
        return self.survivors(cohort) if cohort <= self.complete_up_to else fewest(cohort, self.complete_up_to)


@dataclass(frozen=True)
class Frame:
    """kind: the message's type by name. body: its canonical bytes. signature: 64 bytes."""

    kind: str
    body: bytes
    signature: bytes


def context_of(plan: Plan, roster: Roster) -> bytes:
    """SHA-256 over everything that must be the same for all: run, exchange, round, models, configuration, cohort, and
    whose keys the cohort's and the server's are."""
    keys = (part for client in sorted(plan.cohort) for part in (client.encode(), roster.clients.get(client, b"")))
    cohort = joined(roster.server, *keys)
    numbers = [value.to_bytes(8, "big") for value in (plan.exchange, plan.round)]
    bounds = np.array([plan.clip_norm, plan.weight_scale]).tobytes()
    return digest(PROTOCOL, plan.run.encode(), *numbers, plan.backbone, plan.shared, plan.config, bounds, cohort)


def run_context(run: str) -> bytes:
    """The context of a `Plan` itself, which comes before a round has one."""
    return digest(PROTOCOL, b"plan", run.encode())


def session_of(context: bytes, keys: dict[str, tuple[bytes, bytes]]) -> bytes:
    """H(ctx || sorted (id, keys)): names this round with these fresh keys."""
    parts = [joined(client.encode(), *keys[client]) for client in sorted(keys)]
    return digest(context, *parts)


def survivors_hash(session: bytes, survivors: tuple[str, ...]) -> bytes:
    """H(session, U3), what stage 3 signs."""
    return digest(b"survivors", session, *(client.encode() for client in sorted(survivors)))


def seed_commitment(session: bytes, owner: str, seed: bytes) -> bytes:
    """Binds an owner to its self-mask seed. Hides it, since the seed is 32 random bytes."""
    return digest(b"seed", session, owner.encode(), seed)


def share_commitment(session: bytes, label: str, owner: str, holder: str, share: bytes) -> bytes:
    """Lets the server tell an altered share from the dealt one; hides it as `seed_commitment` does."""
    return digest(b"share", session, label.encode(), owner.encode(), holder.encode(), share)


def points(clients: Any) -> dict[str, int]:
    """Shamir's point of each holder: its place among the sorted clients, from 1."""
    return {client: place for place, client in enumerate(sorted(clients), 1)}


def seal_frame(key: SigningKey, context: bytes, message: Any) -> bytes:
    """A signed frame of a message."""
    kind, body = type(message).__name__, encode(message)
    return encode(Frame(kind, body, key.sign(context, kind, body)))


LARGEST_PART = 1024
"""Bytes that no frame takes for each client of its cohort, its vector and what all say of all apart."""


def check_size(data: Buffer, clients: int, values: int = 0, of_all: bool = False) -> None:
    """Raises `Rejected` for a frame larger than any for a cohort of so many and a vector of so many values can be:
    before it is read, so that nobody has to hold what a flood is made of. of_all: for what everybody says of everybody,
    an `UnmaskRequest`."""
    try:
        size = memoryview(data).nbytes
    except (TypeError, ValueError, BufferError) as error:
        raise Rejected(Code.MALFORMED, f"a {type(data).__name__} is no run of bytes") from error
    largest = LARGEST_PART * (clients + 2) + 4 * values + (8 * clients**2 if of_all else 0)
    if size > largest:
        raise Rejected(Code.WRONG_LENGTH, f"{size} bytes, and none has more than {largest}")


def read_frame(data: Buffer, kind: type[Message]) -> tuple[Frame, Message]:
    """A frame of the expected type and the message in it, whoever signed it. Raises `Rejected`."""
    try:
        frame = decode(Frame, data)
        if frame.kind != kind.__name__:
            raise Rejected(Code.WRONG_STAGE, f"expected {kind.__name__}")
        return frame, decode(kind, frame.body)
    except MalformedMessage as error:
        raise Rejected(Code.MALFORMED, str(error)) from error


def open_frame(data: Buffer, kind: type[Message], context: bytes, key_of: Callable[[Message], bytes | None]) -> Message:
    """The message in a frame of the expected type, signed in this context.

    key_of: the pinned key of whoever the message claims to be from; None for a stranger. Raises `Rejected`.
    """
    frame, message = read_frame(data, kind)
    check_signature(frame, context, key_of(message))
    return message


def check_signature(frame: Frame, context: bytes, public: bytes | None) -> None:
    """public: the pinned key of whoever must have signed; None for a stranger. Raises `Rejected`."""
    if public is None:
        raise Rejected(Code.UNKNOWN_CLIENT)
    if not verify(public, context, frame.kind, frame.body, frame.signature):
        raise Rejected(Code.BAD_SIGNATURE)
