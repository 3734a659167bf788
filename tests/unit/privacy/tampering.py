"""How messages of the protocol are altered on their way, and what the server must say of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from fedtalk_ray.messages import Advertisement, Consistency, Share
from fedtalk_ray.privacy import protocol, wire
from fedtalk_ray.privacy.keys import ExchangeKey, SigningKey
from fedtalk_ray.privacy.protocol import STAGES, Aborted, Code, Frame
from tests.unit.privacy.conftest import OUTSIDER, Exchange

Make = Callable[..., "Exchange"]
Tamper = Callable[["Exchange", str, bytes], bytes]

OFFENDER, OTHER = "c01", "c04"


def flipped(data: bytes) -> bytes:
    """The last bit turned over."""
    return data[:-1] + bytes([data[-1] ^ 1])


def subsets(names: Iterable[str], size: int) -> Iterable[tuple[str, ...]]:
    return combinations(sorted(names), size)


def changed(key: Callable[[Exchange, str], SigningKey] | None = None, **fields: Any) -> Tamper:
    """The message with other fields, signed again by its sender, or with another key."""

    def make(exchange: Exchange, name: str, frame: bytes) -> bytes:
        message = exchange.opened(frame)
        values = {field: value(exchange, message) if callable(value) else value for field, value in fields.items()}
        return exchange.altered(frame, key and key(exchange, name), **values)

    return make


def reframed(make: Callable[[Exchange, str, Frame], Frame]) -> Tamper:
    """The frame around a message changed."""
    return lambda exchange, name, frame: wire.encode(make(exchange, name, wire.decode(Frame, frame)))


def in_context_of(**plan: Any) -> Tamper:
    """The message as it would be signed under another plan."""

    def make(exchange: Exchange, name: str, frame: bytes) -> bytes:
        context = protocol.context_of(replace(exchange.plan, **plan), exchange.people.roster)
        return exchange.signed(exchange.opened(frame), context=context)

    return make


def otherwise(exchange: Exchange, name: str, frame: bytes) -> bytes:
    """Another message of the same type and client, rightly signed."""
    change = {
        "Advertisement": changed(encryption_key=lambda *_: ExchangeKey.generate().public),
        "SealedShares": changed(shares=lambda _, message: message.shares[::-1]),
        "MaskedInput": changed(vector=lambda _, message: message.vector + np.uint32(1)),
        "Consistency": changed(survivors=bytes(32)),
        "Unmasking": changed(self_mask_shares=(Share(OTHER, bytes(33)),)),
    }[wire.decode(Frame, frame).kind]
    return change(exchange, name, frame)


def without_its_key(exchange: Exchange, name: str, outer: Frame) -> Frame:
    """What somebody on the way makes of a message."""
    return replace(wire.decode(Frame, otherwise(exchange, name, wire.encode(outer))), signature=outer.signature)


def as_another_type(exchange: Exchange, name: str, outer: Frame) -> Frame:
    return replace(outer, signature=exchange.people.keys[name].sign(exchange.context, "Share", outer.body))


def of_another_stage(exchange: Exchange, name: str, frame: bytes) -> bytes:
    other = Consistency(name, b"", ()) if exchange.server.stage == "advertise" else Advertisement(name, b"", b"")
    return exchange.signed(other)


def own_key(exchange: Exchange, name: str) -> SigningKey:
    return exchange.people.keys[name]


def others_key(exchange: Exchange, name: str) -> SigningKey:
    return exchange.people.keys[OTHER]


def servers_key(exchange: Exchange, name: str) -> SigningKey:
    return exchange.people.server


def as_float64(exchange: Exchange, name: str, frame: bytes) -> bytes:
    """A vector whose bytes are those of another dtype, under a header of as many values."""
    message = exchange.opened(frame)
    head = wire.encode(replace(message, vector=message.vector[:0]))[:-4]
    body = head + len(message.vector).to_bytes(4, "big") + message.vector.astype("<f8").tobytes()
    return wire.encode(Frame("MaskedInput", body, own_key(exchange, name).sign(exchange.context, "MaskedInput", body)))


def for_holder(holder: str) -> Tamper:
    return changed(shares=lambda _, message: (replace(message.shares[0], holder=holder), *message.shares[1:]))


def advertised_by(exchange: Exchange, name: str) -> Any:
    return exchange.opened(exchange.sent["advertise", name])


ANY_STAGE: dict[Code, dict[str, Tamper]] = {
    Code.MALFORMED: {
        "one byte too few": lambda exchange, name, good: good[:-1],
        "one byte too many": lambda exchange, name, good: good + b"\0",
        "no text where a name is": lambda exchange, name, good: good.replace(name.encode(), b"\xff\xff\xff"),
    },
    Code.BAD_SIGNATURE: {
        "a bit of the signature flipped": lambda exchange, name, good: exchange.flipped(good, -1),
        "changed on its way": reframed(without_its_key),
        "signed as another type": reframed(as_another_type),
        "signed by another client": changed(others_key),
        "in another client's name": changed(own_key, client=OTHER),
        "of another run": in_context_of(run="another run"),
    },
    Code.UNKNOWN_CLIENT: {
        "of an enrolled client outside the cohort": changed(client=OUTSIDER),
        "of a client nobody knows": changed(own_key, client="nobody"),
    },
    Code.WRONG_STAGE: {"of another stage": of_another_stage},
}

WRONG_SHARES: dict[str, Tamper] = {
    "a holder left out": changed(shares=lambda _, message: message.shares[1:]),
    "itself left out": changed(
        shares=lambda _, message: tuple(share for share in message.shares if share.holder != message.client)
    ),
    "two shares for one holder": changed(shares=lambda _, message: (*message.shares, message.shares[0])),
    "a share for somebody outside": for_holder(OUTSIDER),
    "a share for nobody": for_holder("nobody"),
    "one ciphertext with all the room of the others": changed(
        shares=lambda _, message: (
            *(replace(share, ciphertext=b"") for share in message.shares[:-1]),
            replace(message.shares[-1], ciphertext=bytes(49 * len(message.shares))),
        )
    ),
    "a short commitment": changed(
        shares=lambda _, message: (replace(message.shares[0], commitment=bytes(31)), *message.shares[1:])
    ),
}

ONE_STAGE: dict[tuple[str, Code], dict[str, Tamper]] = {
    ("advertise", Code.BAD_KEYS): {
        "a short key": changed(masking_key=bytes(31)),
        "one key for both": changed(masking_key=lambda _, own: own.encryption_key),
        "another's key": changed(masking_key=lambda exchange, _: advertised_by(exchange, "c00").masking_key),
        "a key of small order": changed(masking_key=bytes(32)),
    },
    ("share", Code.WRONG_SHARES): WRONG_SHARES,
    ("mask", Code.WRONG_SHARES): WRONG_SHARES,
    ("mask", Code.WRONG_LENGTH): {
        "a value too few": changed(vector=lambda _, message: message.vector[:-1]),
        "a value too many": changed(vector=lambda _, message: np.append(message.vector, message.vector[:1])),
    },
    ("mask", Code.MALFORMED): {"float64": as_float64},
    ("confirm", Code.INCONSISTENT): {
        "another set of survivors": changed(
            survivors=lambda exchange, _: protocol.survivors_hash(exchange.server.session, exchange.plan.cohort[1:])
        ),
    },
}


Case = tuple[str, Tamper, Code]


def by_stage(
    any_stage: dict[Code, dict[str, Tamper]],
    stages: Iterable[str],
    one_stage: dict[tuple[str, Code], dict[str, Tamper]],
) -> dict[str, list[Case]]:
    """Both tables as cases (what, tamper, code) of each stage."""
    found: dict[str, list[Case]] = {stage: [] for stage in stages}
    everywhere = [((stage, code), table) for code, table in any_stage.items() for stage in found]
    for (stage, code), table in (*everywhere, *one_stage.items()):
        found[stage] += [(what, tamper, code) for what, tamper in table.items()]
    return found


CASES = by_stage(ANY_STAGE, STAGES, ONE_STAGE)


def survivors_without(stage: str) -> set[str]:
    """Whose sum is opened when the offender says nothing more from this stage on."""
    everybody = {f"c{place:02}" for place in range(5)}
    return everybody if stage in ("confirm", "unmask") else everybody - {OFFENDER}


def each_share(change: Callable[[Share], Share]) -> Tamper:
    return changed(
        self_mask_shares=lambda _, message: tuple(map(change, message.self_mask_shares)),
        masking_key_shares=lambda _, message: tuple(map(change, message.masking_key_shares)),
    )


CORRUPT_SHARES: dict[str, Tamper] = {
    "a bit flipped": each_share(lambda share: replace(share, value=flipped(share.value))),
    "of an owner nobody knows": each_share(lambda share: replace(share, owner="nobody")),
    "of the wrong owner": each_share(lambda share: replace(share, owner="c00" if share.owner != "c00" else "c02")),
    "of the wrong kind": changed(
        self_mask_shares=lambda _, message: message.masking_key_shares,
        masking_key_shares=lambda _, message: message.self_mask_shares,
    ),
    "none at all": changed(self_mask_shares=(), masking_key_shares=()),
}

SKELLAM = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0}
EVERYBODY = tuple(f"c{place:02}" for place in range(7))

SMALL_ORDER = bytes(32)
"""A point with which X25519 gives the same secret to everybody."""


def check_unopened(exchange: Exchange) -> None:
    """After an abort the server takes nothing, closes nothing, and tells no sum."""
    for frame in exchange.sent.values():
        assert exchange.give(frame) == Code.WRONG_STAGE
    for method in (exchange.server.close, exchange.server.total):
        with pytest.raises(Aborted) as caught:
            method()
        assert caught.value.code == Code.WRONG_STAGE


def confirmation(exchange: Exchange, name: str, survivors: Iterable[str] | None = None) -> Consistency:
    survivors = exchange.server.survivors if survivors is None else survivors
    return Consistency(name, protocol.survivors_hash(exchange.server.session, tuple(survivors)), ())
