"""The secure protocol: exact sums whoever drops out, every bad message refused, every lie of the server noticed.

The rows are those of the specification's tables: what a client aborts on at each stage, and what a bad message gets.
Then the same behind the parameter server, and mutants that the checks used here must catch.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from opacus.accountants import GaussianAccountant
from scipy.stats import chisquare

from fedtalk_ray.config import parse_config
from fedtalk_ray.federation.checkpoint import Checkpoint, config_digest, save_checkpoint
from fedtalk_ray.federation.roster import ROSTER, RosterFile, extend_roster
from fedtalk_ray.federation.secure_aggregator import SERVER_KEY, make_codec
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.messages import (
    Advertised,
    Advertisement,
    Consistency,
    MaskedInput,
    Plan,
    SealedFrom,
    SealedShare,
    Share,
    Survivors,
    UnmaskRequest,
)
from fedtalk_ray.privacy import accounting, graph, noise, protocol, secure_client, shamir, wire
from fedtalk_ray.privacy.keys import ExchangeKey, SigningKey, digest
from fedtalk_ray.privacy.ledger import Ledger
from fedtalk_ray.privacy.masking import Mask
from fedtalk_ray.privacy.protocol import STAGES, Aborted, Code, Frame, Limits
from fedtalk_ray.privacy.secure_client import check_plan, open_plan
from fedtalk_ray.privacy.update_codec import UpdateCodec
from fedtalk_ray.settings import PrivacyConfig

if TYPE_CHECKING:
    from tests.unit.privacy.conftest import Exchange

Make = Callable[..., "Exchange"]
Tamper = Callable[["Exchange", str, bytes], bytes]

OFFENDER, OTHER = "c01", "c04"
OUTSIDER = "z-outsider"

IMPROBABLE = 1e-8
"""Below this p-value masked values are not uniform. With some forty such tests a right implementation fails less than
once in a million runs; a wrong one has p = 0."""


def flipped(data: bytes) -> bytes:
    """The last bit turned over."""
    return data[:-1] + bytes([data[-1] ^ 1])


def subsets(names: Iterable[str], size: int) -> Iterable[tuple[str, ...]]:
    return combinations(sorted(names), size)


# Sums, whoever drops out. m_min by hand: max(2n/3 + 1 rounded down, 3).


@pytest.mark.parametrize(("count", "floor", "needed"), [(4, 3, 3), (5, 3, 4), (6, 3, 5), (7, 3, 5)])
def test_the_sum_is_exact_for_every_set_of_dropouts_that_leaves_enough(
    make_exchange: Make, count: int, floor: int, needed: int
) -> None:
    names = make_exchange(count, floor=floor).plan.cohort
    for absent in chain.from_iterable(subsets(names, size) for size in range(count - needed + 1)):
        survivors = make_exchange(count, floor=floor).finish({"mask": absent})
        assert set(survivors) == set(names) - set(absent)
    for absent in subsets(names, count - needed + 1):
        exchange = make_exchange(count, floor=floor).until("mask")
        with pytest.raises(Aborted) as caught:
            exchange.step(absent)
        assert caught.value.code == Code.TOO_FEW
        check_unopened(exchange)


@pytest.mark.parametrize("stage", ["share", "confirm", "unmask"])
def test_the_sum_is_exact_when_anybody_drops_out_at_another_stage(make_exchange: Make, stage: str) -> None:
    """Five clients, of whom four must stay. Who leaves after the masked inputs is in the sum all the same."""
    names = make_exchange().plan.cohort
    for absent in subsets(names, 1):
        survivors = make_exchange().finish({stage: absent})
        assert set(survivors) == (set(names) if stage in ("confirm", "unmask") else set(names) - set(absent))
    for absent in subsets(names, 2):
        exchange = make_exchange().until(stage)
        with pytest.raises(Aborted) as caught:
            exchange.step(absent)
        assert caught.value.code == (Code.CANNOT_UNMASK if stage == "unmask" else Code.TOO_FEW)
        check_unopened(exchange)


def test_who_never_advertises_does_not_count_among_those_of_whom_two_thirds_must_stay(make_exchange: Make) -> None:
    names = make_exchange().plan.cohort
    for size in (1, 2):
        for absent in subsets(names, size):
            assert set(make_exchange().finish({"advertise": absent})) == set(names) - set(absent)
    with pytest.raises(Aborted, match="too few: 2 clients after advertise, 3 are needed"):
        make_exchange().step(names[:3])


def test_a_dropout_at_every_stage(make_exchange: Make) -> None:
    """Ten advertise; t = m_min = 7. The shares of the last seven open the sum of eight."""
    exchange = make_exchange(11)
    absent = {"advertise": ["c00"], "share": ["c01"], "mask": ["c02"], "unmask": ["c03"]}
    assert exchange.finish(absent) == tuple(f"c{place:02}" for place in range(3, 11))


def test_seventy_clients_on_the_ring_of_whom_seven_drop_out(make_exchange: Make) -> None:
    exchange = make_exchange(70, floor=8).until("mask")
    absent = exchange.plan.cohort[3::10]
    assert len(absent) == 7
    assert {len(exchange.server._neighbours[name]) for name in exchange.plan.cohort} == {28}, "not a complete graph"
    assert len(exchange.finish({"mask": absent})) == 63


def test_production_opens_no_sum_of_fewer_than_eight(make_exchange: Make) -> None:
    assert Limits() == Limits(8)
    exchange = make_exchange(9, floor=Limits().floor).until("mask")
    with pytest.raises(Aborted, match="too few: 7 clients after mask, 8 are needed"):
        exchange.step(["c00", "c01"])
    assert len(make_exchange(9, floor=8).finish({"mask": ["c00"]})) == 8


def check_unopened(exchange: Exchange) -> None:
    """After an abort the server takes nothing, closes nothing, and tells no sum."""
    for frame in exchange.sent.values():
        assert exchange.give(frame) == Code.WRONG_STAGE
    for method in (exchange.server.close, exchange.server.total):
        with pytest.raises(Aborted) as caught:
            method()
        assert caught.value.code == Code.WRONG_STAGE


# What a bad message gets at the server.


@cache
def past(make_exchange: Make) -> Exchange:
    """An exchange that is over, for frames to replay."""
    exchange = make_exchange(number=1)
    exchange.finish()
    return exchange


@pytest.fixture
def exchange(make_exchange: Make) -> Exchange:
    """The second exchange of the same five clients, of whom m_min = t = 4 must stay."""
    return make_exchange(number=2, people=past(make_exchange).people, **{"round": 1})


@pytest.fixture
def earlier(make_exchange: Make) -> Exchange:
    return past(make_exchange)


def changed(key: Callable[[Exchange, str], SigningKey] | None = None, **fields: Any) -> Tamper:
    """The message with other fields, signed again by its sender, or with another key.

    A field is a value, or a function of the exchange and the message.
    """

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
        context = protocol.context_of(replace(exchange.plan, **plan))
        return exchange.signed(exchange.opened(frame), context=context)

    return make


def otherwise(exchange: Exchange, name: str, frame: bytes) -> bytes:
    """Another message of the same type and client, rightly signed."""
    change = {
        "Advertisement": changed(encryption_key=lambda *_: ExchangeKey.generate().public),
        "SealedShares": changed(seed_commitment=bytes(32)),
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
    other = Consistency(name, b"") if exchange.server.stage == "advertise" else Advertisement(name, b"", b"")
    return exchange.signed(other)


def own_key(exchange: Exchange, name: str) -> SigningKey:
    return exchange.people.keys[name]


def others_key(exchange: Exchange, name: str) -> SigningKey:
    return exchange.people.keys[OTHER]


def servers_key(exchange: Exchange, name: str) -> SigningKey:
    return exchange.people.server


def fresh_key(exchange: Exchange, name: str) -> SigningKey:
    return SigningKey.generate()


def as_dtype(dtype: str) -> Tamper:
    """A vector whose bytes are those of another dtype, under a header of as many values."""

    def make(exchange: Exchange, name: str, outer: Frame) -> Frame:
        message = wire.decode(MaskedInput, outer.body)
        head = wire.encode(replace(message, vector=message.vector[:0]))[:-4]
        body = head + len(message.vector).to_bytes(4, "big") + message.vector.astype(dtype).tobytes()
        return Frame(outer.kind, body, exchange.people.keys[name].sign(exchange.context, outer.kind, body))

    return reframed(make)


def for_holder(holder: str) -> Tamper:
    return changed(shares=lambda _, message: (replace(message.shares[0], holder=holder), *message.shares[1:]))


def advertised_by(exchange: Exchange, name: str) -> Any:
    return exchange.opened(exchange.sent["advertise", name])


ANY_STAGE: dict[Code, dict[str, Tamper]] = {
    Code.MALFORMED: {
        "nothing": lambda exchange, name, good: b"",
        "one byte too few": lambda exchange, name, good: good[:-1],
        "one byte too many": lambda exchange, name, good: good + b"\0",
        "half of it": lambda exchange, name, good: good[: len(good) // 2],
        "noise": lambda exchange, name, good: bytes(range(256)),
        "a length of 4 GB": lambda exchange, name, good: b"\xff\xff\xff\xff" + good[4:],
        "no text where a name is": lambda exchange, name, good: good.replace(name.encode(), b"\xff\xff\xff"),
    },
    Code.BAD_SIGNATURE: {
        "a bit of the signature flipped": lambda exchange, name, good: exchange.flipped(good, -1),
        "a signature cut short": reframed(lambda _, name, outer: replace(outer, signature=outer.signature[:-1])),
        "no signature": reframed(lambda _, name, outer: replace(outer, signature=b"")),
        "changed on its way": reframed(without_its_key),
        "signed as another type": reframed(as_another_type),
        "signed by another client": changed(others_key),
        "signed by the server": changed(servers_key),
        "signed by a fresh key": changed(fresh_key),
        "in another client's name": changed(own_key, client=OTHER),
        "of another run": in_context_of(run="another run"),
        "of another model": in_context_of(shared=b"1" * 32),
    },
    Code.UNKNOWN_CLIENT: {
        "of an enrolled client outside the cohort": changed(client=OUTSIDER),
        "of a client nobody knows": changed(own_key, client="nobody"),
    },
    Code.WRONG_STAGE: {"of another stage": of_another_stage},
}

ONE_STAGE: dict[tuple[str, Code], dict[str, Tamper]] = {
    ("advertise", Code.BAD_KEYS): {
        "a short key": changed(masking_key=bytes(31)),
        "no key": changed(encryption_key=b""),
        "one key for both": changed(masking_key=lambda _, own: own.encryption_key),
        "another's key": changed(masking_key=lambda exchange, _: advertised_by(exchange, "c00").masking_key),
        "another's other key": changed(masking_key=lambda exchange, _: advertised_by(exchange, "c00").encryption_key),
    },
    ("share", Code.WRONG_SHARES): {
        "a holder left out": changed(shares=lambda _, message: message.shares[1:]),
        "two shares for one holder": changed(shares=lambda _, message: (*message.shares, message.shares[0])),
        "a share for somebody outside": for_holder(OUTSIDER),
        "a share for nobody": for_holder("nobody"),
    },
    ("mask", Code.WRONG_LENGTH): {
        "a value too few": changed(vector=lambda _, message: message.vector[:-1]),
        "a value too many": changed(vector=lambda _, message: np.append(message.vector, message.vector[:1])),
        "no value": changed(vector=np.zeros(0, np.uint32)),
    },
    ("mask", Code.MALFORMED): {"float64": as_dtype("<f8"), "uint16": as_dtype("<u2"), "bytes": as_dtype("u1")},
    ("confirm", Code.INCONSISTENT): {
        "no set of survivors": changed(survivors=b""),
        "another set of survivors": changed(
            survivors=lambda exchange, _: protocol.survivors_hash(exchange.server.session, exchange.plan.cohort[1:])
        ),
    },
}


def rows(
    any_stage: dict[Code, dict[str, Tamper]],
    stages: Iterable[str],
    one_stage: dict[tuple[str, Code], dict[str, Tamper]],
) -> list[Any]:
    """Parameters (stage, tamper, code) of both tables."""
    everywhere = {(stage, code): table for code, table in any_stage.items() for stage in stages}
    return [
        pytest.param(stage, tamper, code, id=f"{stage}-{what}")
        for (stage, code), table in (*everywhere.items(), *one_stage.items())
        for what, tamper in table.items()
    ]


ROWS = rows(ANY_STAGE, STAGES, ONE_STAGE)


def survivors_without(stage: str) -> set[str]:
    """Whose sum is opened when the offender says nothing more from this stage on."""
    everybody = {f"c{place:02}" for place in range(5)}
    return everybody if stage in ("confirm", "unmask") else everybody - {OFFENDER}


@pytest.mark.parametrize("then", ["silence", "a good message"])
@pytest.mark.parametrize(("stage", "tamper", "code"), ROWS)
def test_a_bad_message_is_refused_and_the_others_end_the_round(
    exchange: Exchange, stage: str, tamper: Tamper, code: Code, then: str
) -> None:
    exchange.until(stage)
    for name in ("c00", "c02"):
        assert exchange.give(exchange.ask(name)) is None
    good = exchange.ask(OFFENDER)
    before = exchange.state()
    for _ in range(2):
        assert exchange.give(tamper(exchange, OFFENDER, good)) == code
        assert exchange.state() == before
    if then == "silence":
        exchange.step([OFFENDER])
        assert set(exchange.finish()) == survivors_without(stage)
    else:
        assert exchange.give(good) is None
        exchange.step()
        assert len(exchange.finish()) == 5


@pytest.mark.parametrize("stage", STAGES)
def test_a_frame_of_an_earlier_exchange_is_refused(exchange: Exchange, earlier: Exchange, stage: str) -> None:
    exchange.until(stage)
    before = exchange.state()
    for name in exchange.plan.cohort:
        assert exchange.give(earlier.sent[stage, name]) == Code.BAD_SIGNATURE
    assert exchange.state() == before
    assert len(exchange.finish()) == 5


@pytest.mark.parametrize("stage", STAGES)
def test_a_second_message_of_a_client_is_refused_even_the_very_same(exchange: Exchange, stage: str) -> None:
    exchange.until(stage)
    good = exchange.ask(OFFENDER)
    second = otherwise(exchange, OFFENDER, good)
    assert exchange.give(good) is None
    before = exchange.state()
    for frame in (good, second, good):
        assert exchange.give(frame) == Code.DUPLICATE
        assert exchange.state() == before
    assert len(exchange.finish()) == 5


@pytest.mark.parametrize("stage", STAGES)
def test_a_message_after_its_stage_was_closed_is_refused(exchange: Exchange, stage: str) -> None:
    exchange.until(stage)
    good = exchange.ask(OFFENDER)
    exchange.step([OFFENDER])
    while True:
        before = exchange.state()
        assert exchange.give(good) == Code.WRONG_STAGE
        assert exchange.state() == before
        if exchange.server.stage not in STAGES:
            break
        exchange.step()
    exchange.check_sum()
    assert set(exchange.server.survivors) == survivors_without(stage)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_who_missed_a_stage_cannot_come_back(exchange: Exchange, stage: str) -> None:
    missed = STAGES[STAGES.index(stage) - 1]
    exchange.until(missed).step([OFFENDER])
    assert exchange.give(exchange.ask("c00")) is None
    forged = exchange.altered(exchange.sent[stage, "c00"], client=OFFENDER)
    before = exchange.state()
    assert exchange.give(forged) == Code.NOT_IN_ROUND
    assert exchange.state() == before
    assert set(exchange.finish()) == survivors_without(missed)


# Shares and ciphertexts that are damaged within a message that its sender signed.


def each_share(change: Callable[[Share], Share]) -> Tamper:
    return changed(
        self_mask_shares=lambda _, message: tuple(map(change, message.self_mask_shares)),
        masking_key_shares=lambda _, message: tuple(map(change, message.masking_key_shares)),
    )


CORRUPT_SHARES: dict[str, Tamper] = {
    "a bit flipped": each_share(lambda share: replace(share, value=flipped(share.value))),
    "cut short": each_share(lambda share: replace(share, value=share.value[:-1])),
    "empty": each_share(lambda share: replace(share, value=b"")),
    "beyond the field": each_share(lambda share: replace(share, value=b"\xff" * 33)),
    "of an owner nobody knows": each_share(lambda share: replace(share, owner="nobody")),
    "of the wrong owner": each_share(lambda share: replace(share, owner="c00" if share.owner != "c00" else "c02")),
    "of the wrong kind": changed(
        self_mask_shares=lambda _, message: message.masking_key_shares,
        masking_key_shares=lambda _, message: message.self_mask_shares,
    ),
    "none at all": changed(self_mask_shares=(), masking_key_shares=()),
}


@pytest.mark.parametrize("tamper", CORRUPT_SHARES.values(), ids=CORRUPT_SHARES)
def test_damaged_shares_are_left_out_and_the_others_open_the_sum(make_exchange: Make, tamper: Tamper) -> None:
    """Seven clients, t = 5, one dropout: of the six who answer one may hand out rubbish, and two may not."""
    exchange = make_exchange(7).until("unmask", {"mask": ["c06"]})
    assert exchange.give(tamper(exchange, OFFENDER, exchange.ask(OFFENDER))) is None
    assert len(exchange.finish()) == 6
    exchange = make_exchange(7).until("unmask", {"mask": ["c06"]})
    for name in (OFFENDER, OTHER):
        assert exchange.give(tamper(exchange, name, exchange.ask(name))) is None
    with pytest.raises(Aborted) as caught:
        exchange.step()
    assert caught.value.code == Code.CANNOT_UNMASK
    check_unopened(exchange)


def test_one_damaged_share_among_good_ones_is_left_out_alone(make_exchange: Make) -> None:
    """t = 4 of 5, and two clients spoil one share each: were anything else of theirs thrown away, t would be missed."""

    def spoil(exchange: Exchange, name: str, owner: str) -> None:
        good = exchange.opened(exchange.ask(name)).self_mask_shares
        spoilt = tuple(replace(share, value=bytes(33)) if share.owner == owner else share for share in good)
        assert len(good) == 5 and spoilt != good
        assert exchange.give(exchange.altered(exchange.sent["unmask", name], self_mask_shares=spoilt)) is None

    exchange = make_exchange(5).until("unmask")
    spoil(exchange, OFFENDER, "c00")
    spoil(exchange, OTHER, "c02")
    assert len(exchange.finish()) == 5


def test_a_damaged_copy_does_not_push_out_the_good_share(make_exchange: Make) -> None:
    exchange = make_exchange(5).until("unmask")
    good = exchange.opened(exchange.ask(OFFENDER)).self_mask_shares
    copies = (*good, *(replace(share, value=bytes(33)) for share in good))
    assert exchange.give(exchange.altered(exchange.sent["unmask", OFFENDER], self_mask_shares=copies)) is None
    assert len(exchange.finish({"unmask": ["c00"]})) == 5


def dealt_with(count: int, change: Callable[[SealedShare], SealedShare]) -> Tamper:
    """Changes what is dealt to the last `count` holders."""

    def some(_: Exchange, message: Any) -> tuple[SealedShare, ...]:
        spoilt = sorted(share.holder for share in message.shares)[-count:]
        return tuple(change(share) if share.holder in spoilt else share for share in message.shares)

    return changed(shares=some)


DAMAGE: dict[str, Callable[[SealedShare], SealedShare]] = {
    "a ciphertext with a bit flipped": lambda share: replace(share, ciphertext=flipped(share.ciphertext)),
    "an empty ciphertext": lambda share: replace(share, ciphertext=b""),
    "a ciphertext of zeros": lambda share: replace(share, ciphertext=bytes(len(share.ciphertext))),
    "a wrong commitment to a share": lambda share: replace(share, self_mask_commitment=bytes(32)),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_dealer_may_damage_what_it_deals_to_a_few(
    make_exchange: Make, change: Callable[[SealedShare], SealedShare]
) -> None:
    """Seven clients, t = 5: with two holders spoilt five are left; with three the sum stays closed."""
    exchange = make_exchange(7).until("share")
    assert exchange.give(dealt_with(2, change)(exchange, OFFENDER, exchange.ask(OFFENDER))) is None
    assert len(exchange.finish()) == 7
    exchange = make_exchange(7).until("share")
    assert exchange.give(dealt_with(3, change)(exchange, OFFENDER, exchange.ask(OFFENDER))) is None
    with pytest.raises(Aborted) as caught:
        exchange.until("open")
    assert caught.value.code == Code.CANNOT_UNMASK
    check_unopened(exchange)


@pytest.mark.parametrize("secret", ["seed", "masking key", "commitment"])
def test_a_dealer_whose_shares_give_another_secret_is_found_out(
    make_exchange: Make, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    """The sum would come out wrong, so it does not come out at all."""
    exchange = make_exchange(5).until("share")
    split, place = shamir.split, iter(("seed", "masking key"))
    with monkeypatch.context() as patch:
        patch.setattr(
            secure_client.shamir,
            "split",
            lambda value, *rest, **more: split(bytes(32) if next(place) == secret else value, *rest, **more),
        )
        frame = exchange.ask(OFFENDER)
    if secret == "commitment":
        frame = exchange.altered(frame, seed_commitment=flipped(exchange.opened(frame).seed_commitment))
    assert exchange.give(frame) is None
    with pytest.raises(Aborted) as caught:
        exchange.until("open", {"mask": [OFFENDER] if secret == "masking key" else []})
    assert caught.value.code == Code.CANNOT_UNMASK
    check_unopened(exchange)


@pytest.mark.parametrize(
    ("count", "spoilt"),
    [
        (7, 1),
        (7, 7),
        (14, 14),
        (14, 1),
    ],
)
def test_one_wrong_share_that_its_dealer_vouches_for_is_left_out(
    make_exchange: Make, monkeypatch: pytest.MonkeyPatch, count: int, spoilt: int
) -> None:
    """The dealer commits to what it deals, rubbish to one holder; the others have more than t = 5 of 7 or 10 of 14."""
    exchange = make_exchange(count).until("share")
    split = shamir.split

    def spoil(*arguments: Any) -> dict[int, bytes]:
        return {point: bytes(33) if point == spoilt else share for point, share in split(*arguments).items()}

    with monkeypatch.context() as patch:
        patch.setattr(secure_client.shamir, "split", spoil)
        assert exchange.give(exchange.ask(OFFENDER)) is None
    assert len(exchange.finish()) == count


def test_shares_that_nobody_should_have_given_are_not_used(make_exchange: Make) -> None:
    """A client that gives out both kinds of everything: the server keeps self masks of survivors, keys of dropouts."""
    exchange = make_exchange(7).until("unmask", {"mask": ["c06"]})
    held = exchange.clients[OFFENDER]._held
    everything = {
        "self_mask_shares": tuple(Share(owner, pair[0]) for owner, pair in held.items()),
        "masking_key_shares": tuple(Share(owner, pair[1]) for owner, pair in held.items()),
    }
    assert len(held) == 7
    assert exchange.give(exchange.altered(exchange.ask(OFFENDER), **everything)) is None
    assert set(exchange.server._seed_shares) == set(exchange.plan.cohort) - {"c06"}
    assert set(exchange.server._key_shares) == {"c06"}
    assert len(exchange.finish()) == 6


SMALL_ORDER = bytes(32)
"""A point with which X25519 gives the same secret to everybody."""


@pytest.mark.parametrize("which", ["encryption_key", "masking_key"])
def test_a_key_of_small_order_is_refused(exchange: Exchange, which: str) -> None:
    good = exchange.ask(OFFENDER)
    assert exchange.give(exchange.altered(good, **{which: SMALL_ORDER})) == Code.BAD_KEYS


@pytest.mark.parametrize("frame", [np.zeros((4, 4), np.uint8)[:, ::2], "text", None], ids=["a slice", "text", "None"])
def test_what_is_no_buffer_is_refused(exchange: Exchange, frame: Any) -> None:
    assert exchange.give(frame) == Code.MALFORMED


# What a client ends the exchange on. Seven clients, of whom m_min = t = 5 must stay, so the other six go on.

VICTIM = "c02"

EVERYBODY = tuple(f"c{place:02}" for place in range(7))
GONE = "c06"
"""Who drops out at stage 2 in the cases at stage 4."""


def advertising(change: Callable[[Exchange, dict[str, bytes]], dict[str, bytes] | list[bytes]]) -> Tamper:
    """An `Advertised` that the server signs, of other advertisements than it got."""

    def make(exchange: Exchange, message: Any) -> tuple[bytes, ...]:
        told = change(exchange, {exchange.opened(frame).client: frame for frame in message.advertisements})
        return tuple(told.values() if isinstance(told, dict) else told)

    return changed(advertisements=make)


def altering(who: str, tamper: Tamper) -> Tamper:
    """One client's advertisement altered: by itself, in league with the server, where the signature holds."""
    return advertising(lambda exchange, frames: frames | {who: tamper(exchange, who, frames[who])})


def adding(make: Callable[[Exchange, dict[str, bytes]], bytes]) -> Tamper:
    """One more advertisement."""
    return advertising(lambda exchange, frames: [*frames.values(), make(exchange, frames)])


def stranger(exchange: Exchange, name: str, key: SigningKey | None = None) -> bytes:
    pair = ExchangeKey.generate().public, ExchangeKey.generate().public
    return exchange.signed(Advertisement(name, *pair), key)


def delivering(change: Callable[[tuple[SealedFrom, ...]], Iterable[SealedFrom]]) -> Tamper:
    return changed(shares=lambda _, message: tuple(change(message.shares)))


def unreadable(count: int) -> Tamper:
    def damage(shares: tuple[SealedFrom, ...]) -> list[SealedFrom]:
        return [replace(share, ciphertext=flipped(share.ciphertext)) for share in shares[:count]] + [*shares[count:]]

    return delivering(damage)


def shifted(shares: tuple[SealedFrom, ...]) -> list[SealedFrom]:
    """Everybody's ciphertext under the next one's name."""
    return [replace(share, owner=other.owner) for share, other in zip(shares, (*shares[1:], shares[0]), strict=True)]


def naming(*names: str) -> Tamper:
    return changed(clients=names)


def confirmation(exchange: Exchange, name: str, survivors: Iterable[str] | None = None) -> Consistency:
    survivors = exchange.server.survivors if survivors is None else survivors
    return Consistency(name, protocol.survivors_hash(exchange.server.session, tuple(survivors)))


def confirmed_by(make: Callable[[Exchange, str], bytes], names: Iterable[str] = EVERYBODY) -> Tamper:
    """Four confirmations as they should be, and as many as one likes made by `make`."""
    return changed(
        confirmations=lambda exchange, request: (
            *request.confirmations[:4],
            *(make(exchange, name) for name in names if not any(name.encode() in f for f in request.confirmations[:4])),
        )
    )


ANY_LIE: dict[Code, dict[str, Tamper]] = {
    Code.MALFORMED: {
        "nothing": lambda exchange, name, honest: b"",
        "cut short": lambda exchange, name, honest: honest[:-1],
    },
    Code.BAD_SIGNATURE: {
        "a bit of the signature flipped": lambda exchange, name, honest: exchange.flipped(honest, -1),
        "signed by a client": changed(others_key),
        "signed by a fresh key": changed(fresh_key),
        "of another exchange": in_context_of(exchange=7),
        "of another model": in_context_of(shared=b"1" * 32),
    },
    Code.WRONG_STAGE: {
        "the plan": lambda exchange, name, honest: exchange.signed(exchange.plan),
        "a client's message": lambda exchange, name, honest: exchange.sent["advertise", name],
    },
}

LIES: dict[tuple[str, Code], dict[str, Tamper]] = {
    ("share", Code.BAD_KEYS): {
        "its own key altered": altering(VICTIM, changed(masking_key=bytes(31) + b"1")),
        "its own keys left out": advertising(lambda _, all: [all[name] for name in all if name != VICTIM]),
        "two advertisements of one client": adding(lambda _, all: all["c00"]),
        "two different advertisements of one client": adding(lambda exchange, _: stranger(exchange, "c00")),
        "another with its key": altering(
            "c00", changed(masking_key=lambda exchange, _: advertised_by(exchange, VICTIM).masking_key)
        ),
        "two others with one key": altering(
            "c00", changed(encryption_key=lambda exchange, _: advertised_by(exchange, "c01").masking_key)
        ),
        "one key for both": altering("c00", changed(encryption_key=lambda _, own: own.masking_key)),
        "a short key": altering("c00", changed(encryption_key=bytes(31))),
    },
    ("share", Code.BAD_SIGNATURE): {
        "its own keys by the server's hand": altering(VICTIM, changed(servers_key)),
        "another's keys by the server's hand": altering("c00", changed(servers_key, masking_key=bytes(31) + b"1")),
        "another's keys of an earlier exchange": altering("c00", in_context_of(exchange=7)),
    },
    ("share", Code.UNKNOWN_CLIENT): {
        "a stranger who is enrolled": adding(lambda exchange, _: stranger(exchange, OUTSIDER)),
        "a stranger whom nobody knows": adding(lambda exchange, _: stranger(exchange, "s", SigningKey.generate())),
    },
    ("share", Code.TOO_FEW): {
        "too few neighbours": advertising(lambda _, all: [all["c00"], all[VICTIM]]),
        "no neighbours": advertising(lambda _, all: [all[VICTIM]]),
    },
    ("mask", Code.TOO_FEW): {
        "too many ciphertexts that cannot be read": unreadable(3),
        "ciphertexts under each other's names": delivering(shifted),
        "too few shares": delivering(lambda shares: shares[:3]),
        "no shares": delivering(lambda shares: ()),
    },
    ("mask", Code.WRONG_SHARES): {
        "two shares of one client": delivering(lambda shares: [*shares, shares[0]]),
        "a share of a stranger": delivering(lambda shares: [*shares, replace(shares[0], owner=OUTSIDER)]),
        "a share of its own": delivering(lambda shares: [*shares, replace(shares[0], owner=VICTIM)]),
    },
    ("confirm", Code.INCONSISTENT): {
        "itself not among the survivors": naming("c00", "c01", "c03", "c04", "c05", "c06"),
        "a stranger among the survivors": naming(*EVERYBODY, OUTSIDER),
        "a survivor named twice": naming("c00", "c00", "c01", VICTIM, "c03", "c04"),
    },
    ("confirm", Code.TOO_FEW): {"survivors below m_min": naming("c00", "c01", VICTIM, "c03")},
    # After c06 dropped out at stage 2.
    ("unmask", Code.TOO_FEW): {
        "fewer than t confirmations": changed(confirmations=lambda _, request: request.confirmations[:4]),
        "no confirmation": changed(confirmations=()),
        "one confirmation many times": changed(confirmations=lambda _, request: request.confirmations[:1] * 9),
        "confirmations that are none": confirmed_by(lambda exchange, name: name.encode()),
        "confirmations by the server": confirmed_by(
            lambda exchange, name: exchange.signed(confirmation(exchange, name), exchange.people.server)
        ),
        "confirmations by one who signs for others": confirmed_by(
            lambda exchange, name: exchange.signed(confirmation(exchange, name), exchange.people.keys["c00"])
        ),
        "confirmations of another set": confirmed_by(
            lambda exchange, name: exchange.signed(confirmation(exchange, name, EVERYBODY))
        ),
        "confirmations of another exchange": confirmed_by(
            lambda exchange, name: in_context_of(exchange=7)(
                exchange, name, exchange.signed(confirmation(exchange, name))
            )
        ),
        "a confirmation by the one who dropped out": confirmed_by(
            lambda exchange, name: exchange.signed(confirmation(exchange, name)), [GONE]
        ),
        "a confirmation by a stranger": confirmed_by(
            lambda exchange, name: exchange.signed(confirmation(exchange, name)), [OUTSIDER]
        ),
    },
    ("unmask", Code.OVERLAP): {
        "lists that overlap": changed(dropped=(GONE, "c00")),
        "itself as dropped": changed(dropped=(GONE, VICTIM)),
        "everybody in both lists": changed(dropped=lambda _, request: request.survivors),
    },
    ("unmask", Code.INCONSISTENT): {
        "a survivor moved to the dropped": changed(survivors=EVERYBODY[1:6], dropped=("c00", GONE)),
        "a survivor left out": changed(survivors=EVERYBODY[1:6]),
        "itself left out of the survivors": changed(survivors=("c00", "c01", "c03", "c04", "c05")),
        "itself moved to the dropped": changed(survivors=("c00", "c01", "c03", "c04", "c05"), dropped=(VICTIM, GONE)),
        "the dropout as one more survivor": changed(survivors=EVERYBODY, dropped=()),
        "the dropout left out": changed(dropped=()),
    },
}


@pytest.mark.parametrize(("stage", "lie", "code"), rows(ANY_LIE, STAGES[1:], LIES))
def test_a_client_ends_the_exchange_on_a_lie_and_the_others_go_on(
    make_exchange: Make, stage: str, lie: Tamper, code: Code
) -> None:
    exchange = make_exchange(7)
    exchange.until(stage, {"mask": [GONE]} if stage == "unmask" else None)
    assert exchange.abort_of(VICTIM, lie(exchange, VICTIM, exchange.inbox[VICTIM])) == code
    exchange.step([VICTIM])
    lost = {GONE} if stage == "unmask" else {VICTIM} if stage in ("share", "mask") else set()
    assert set(exchange.finish()) == set(EVERYBODY) - lost


def test_survivors_who_never_shared_end_the_exchange(make_exchange: Make) -> None:
    """U3 within U2: c06 advertised and dealt no shares."""
    exchange = make_exchange(7).until("confirm", {"share": [GONE]})
    assert exchange.abort_of(VICTIM, naming(*EVERYBODY)(exchange, VICTIM, exchange.inbox[VICTIM])) == Code.INCONSISTENT


def test_a_dropout_who_never_shared_may_not_be_asked_for(make_exchange: Make) -> None:
    exchange = make_exchange(7).until("unmask", {"share": [GONE]})
    asked = changed(dropped=(GONE,))(exchange, VICTIM, exchange.inbox[VICTIM])
    assert exchange.abort_of(VICTIM, asked) == Code.INCONSISTENT


def test_as_many_unreadable_ciphertexts_as_may_be_do_not_stop_a_client(make_exchange: Make) -> None:
    """Of seven shares, its own among them, five must be left."""
    exchange = make_exchange(7).until("mask")
    frame = unreadable(2)(exchange, VICTIM, exchange.inbox[VICTIM])
    assert exchange.give(exchange.ask(VICTIM, frame)) is None
    assert len(exchange.finish()) == 7


@pytest.mark.parametrize(
    ("done", "asked"), [(done, asked) for done in range(5) for asked in STAGES if asked != STAGES[done]]
)
def test_a_stage_out_of_order_ends_the_exchange(make_exchange: Make, done: int, asked: str) -> None:
    """After `done` answers a client is asked for any stage but the one that follows."""
    exchange = make_exchange(5).until(STAGES[done])
    frame = exchange.heard.get((asked, "c00"), exchange.inbox["c00"])
    assert exchange.abort_of("c00", frame, asked) == Code.WRONG_STAGE
    exchange.step(["c00"])
    assert len(exchange.finish()) == (4 if done < 3 else 5)


def test_a_second_request_to_unmask_gets_nothing(make_exchange: Make) -> None:
    exchange = make_exchange(5)
    exchange.finish()
    for name in exchange.plan.cohort:
        exchange.check_silent(name)


@pytest.mark.parametrize("end", ["an abort", "the last stage"])
def test_a_client_that_is_through_says_so(make_exchange: Make, end: str) -> None:
    exchange = make_exchange(5)
    if end == "an abort":
        with pytest.raises(Aborted):
            exchange.clients["c00"].share(b"")
    else:
        exchange.finish()
    with pytest.raises(Aborted) as caught:
        exchange.clients["c00"].unmask(exchange.heard.get(("unmask", "c00"), b""))
    assert caught.value.code == Code.WRONG_STAGE


@pytest.mark.parametrize("which", ["encryption_key", "masking_key"])
def test_a_key_of_small_order_ends_the_exchange(make_exchange: Make, which: str) -> None:
    """A client in league with the server wants a secret that everybody knows."""
    exchange = make_exchange(7)
    for name in EVERYBODY:
        assert exchange.give(exchange.ask(name)) is None
    forged = exchange.altered(exchange.sent["advertise", "c00"], **{which: SMALL_ORDER})
    exchange.server._frames["advertise"]["c00"] = forged
    exchange.server._keys["c00"] = (exchange.opened(forged).encryption_key, exchange.opened(forged).masking_key)
    exchange.close()
    with pytest.raises(Aborted) as caught:
        for name in EVERYBODY[1:]:
            assert exchange.give(exchange.ask(name)) is None
        assert exchange.give(exchange.altered(exchange.sent["share", "c01"], client="c00")) is None
        exchange.close()
        exchange.ask(VICTIM)
    assert caught.value.code == Code.BAD_KEYS


# Plans.


def pinned(plan: Plan, **changes: Any) -> dict[str, Any]:
    hashes = {"backbone": plan.backbone, "shared": plan.shared, "config": plan.config}
    return {"last_exchange": plan.exchange - 1} | hashes | changes


@pytest.mark.parametrize(
    ("name", "own", "code"),
    [
        ("c00", {}, None),
        ("c00", {"last_exchange": 3}, Code.OLD_ROUND),
        ("c00", {"last_exchange": 9}, Code.OLD_ROUND),
        ("c00", {"backbone": b"1" * 32}, Code.NOT_PINNED),
        ("c00", {"shared": b"1" * 32}, Code.NOT_PINNED),
        ("c00", {"config": b"1" * 32}, Code.NOT_PINNED),
        (OUTSIDER, {}, Code.NOT_IN_ROUND),
    ],
)
def test_a_client_takes_part_only_in_a_new_exchange_about_what_it_has_itself(
    make_exchange: Make, name: str, own: dict[str, Any], code: Code | None
) -> None:
    plan = make_exchange(number=3).plan
    if code is None:
        check_plan(plan, name, **pinned(plan, **own))
        return
    with pytest.raises(Aborted) as caught:
        check_plan(plan, name, **pinned(plan, **own))
    assert caught.value.code == code


def test_a_plan_must_be_of_this_run_and_by_this_server(make_exchange: Make) -> None:
    exchange = make_exchange()
    roster, good = exchange.people.roster, exchange.server.plan_frame()
    assert open_plan(good, roster, "run") == exchange.plan
    here = protocol.run_context("run")
    elsewhere = replace(exchange.plan, run="another")
    for frame, run, code in (
        (good, "another", Code.BAD_SIGNATURE),
        (exchange.signed(elsewhere, context=here), "run", Code.NOT_PINNED),
        (exchange.signed(exchange.plan, exchange.people.keys["c00"], here), "run", Code.BAD_SIGNATURE),
        (exchange.signed(exchange.plan), "run", Code.BAD_SIGNATURE),
        (exchange.flipped(good, -1), "run", Code.BAD_SIGNATURE),
        (good[:-1], "run", Code.MALFORMED),
        (exchange.signed(Survivors(()), context=here), "run", Code.WRONG_STAGE),
    ):
        with pytest.raises(Aborted) as caught:
            open_plan(frame, roster, run)
        assert caught.value.code == code


def test_every_part_of_a_plan_is_in_the_context(make_exchange: Make) -> None:
    plan = make_exchange().plan
    others = {
        "run": "other",
        "exchange": 9,
        "round": 9,
        "backbone": b"1" * 32,
        "shared": b"1" * 32,
        "config": b"1" * 32,
        "clip_norm": 2.0,
        "cohort": plan.cohort[1:],
    }
    assert set(others) == set(vars(plan))
    contexts = {protocol.context_of(plan), *(protocol.context_of(replace(plan, **{k: v})) for k, v in others.items())}
    assert len(contexts) == 9
    assert protocol.context_of(replace(plan, cohort=plan.cohort[::-1])) == protocol.context_of(plan)


def test_a_server_with_two_models_gets_no_vector(make_exchange: Make) -> None:
    """Each half of the clients was given a model of its own, and pinned it. Their signatures do not go together, and
    neither half is large enough by itself."""
    one = make_exchange(12, floor=8)
    other = make_exchange(12, floor=8, people=one.people, shared=b"1" * 32)
    assert one.context != other.context
    for name in one.plan.cohort[:6]:
        assert one.give(one.ask(name)) is None
    for name in one.plan.cohort[6:]:
        frame = other.ask(name)
        assert other.give(frame) is None
        before = one.state()
        assert one.give(frame) == Code.BAD_SIGNATURE
        assert one.state() == before
    # The server lies on by hand: to some of each half it passes on everybody's keys, to the others their half's.
    everybody = (*one.sent.values(), *other.sent.values())
    for exchange, group in ((one, one.plan.cohort[:6]), (other, one.plan.cohort[6:])):
        for mixed, names in ((True, group[:3]), (False, group[3:])):
            told = exchange.signed(Advertised(everybody if mixed else tuple(exchange.sent.values())))
            for name in names:
                code = exchange.abort_of(name, told, "share")
                assert code == (Code.BAD_SIGNATURE if mixed else Code.TOO_FEW)
    assert not [stage for stage, _ in (*one.sent, *other.sent) if stage != "advertise"]


def test_two_models_give_two_sessions_and_masks_that_do_not_cancel(make_exchange: Make) -> None:
    """Even with the same keys: the context salts every key that two clients derive."""
    one = make_exchange(5)
    other = make_exchange(5, people=one.people, shared=b"1" * 32)
    keys = {name: (bytes([place]) * 32, bytes([place + 100]) * 32) for place, name in enumerate(one.plan.cohort)}
    sessions = [protocol.session_of(exchange.context, keys) for exchange in (one, other)]
    assert sessions[0] != sessions[1]
    left, right = ExchangeKey.generate(), ExchangeKey.generate()
    assert left.derive(right.public, sessions[0], "mask", "a", "b") == right.derive(
        left.public, sessions[0], "mask", "a", "b"
    )
    assert left.derive(right.public, sessions[0], "mask", "a", "b") != right.derive(
        left.public, sessions[1], "mask", "a", "b"
    )


# What the server may learn.


def stream_of(key: bytes, length: int) -> np.ndarray:
    """AES-256-CTR as uint32, written a second time."""
    return np.frombuffer(Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(4 * length)), "<u4")


def hkdf(secret: bytes, salt: bytes, *info: bytes) -> bytes:
    """RFC 5869 for 32 bytes, with the parts of `info` after their lengths."""
    message = b"".join(len(part).to_bytes(4, "big") + part for part in info)
    return hmac.digest(hmac.digest(salt, secret, "sha256"), message + b"\1", "sha256")


def pair_masks(exchange: Exchange, name: str, length: int) -> np.ndarray:
    """The sum of a client's pairwise masks as the specification has it, from its own secret key."""
    own = X25519PrivateKey.from_private_bytes(exchange.clients[name]._masking.secret)
    total = np.zeros(length, np.uint32)
    for other in exchange.plan.cohort:
        if other != name:
            theirs = X25519PublicKey.from_public_bytes(advertised_by(exchange, other).masking_key)
            low, high = sorted((name, other))
            key = hkdf(own.exchange(theirs), exchange.server.session, b"mask", low.encode(), high.encode())
            total = total + stream_of(key, length) if name < other else total - stream_of(key, length)
    return total


def check_uniform(values: np.ndarray) -> None:
    """Every byte value as often as the others."""
    counts = np.bincount(np.ascontiguousarray(values).view(np.uint8), minlength=256)
    assert chisquare(counts).pvalue > IMPROBABLE, "not uniform"


def check_masks(make_exchange: Make) -> None:
    """Twice the same plan and the same vectors, all zero: the self mask, the pairwise masks (what the server is left
    with, once it has opened the self mask) and both together are uniform, new each time, and made from the secrets."""
    length = 4096
    first = make_exchange(4)
    names = first.plan.cohort
    zeros = {name: np.zeros(length, np.uint32) for name in names}
    twice = [make_exchange(4, length=length, people=first.people, vectors=zeros).until("confirm") for _ in range(2)]
    for name in names:
        parts = []
        for exchange in twice:
            masked = exchange.opened(exchange.sent["mask", name]).vector
            own = stream_of(exchange.clients[name]._seed, length)
            parts.append((masked, own, masked - own))
        for one, another in zip(*parts, strict=True):
            assert (one == another).mean() < 0.01, "the same mask twice"
            check_uniform(one)
            check_uniform(one - another)
        for exchange, (_, _, pairs) in zip(twice, parts, strict=True):
            assert (pairs == pair_masks(exchange, name, length)).all(), "not the specified masks"


def test_masked_vectors_look_uniform_and_masks_are_never_used_twice(make_exchange: Make) -> None:
    check_masks(make_exchange)


def test_one_share_too_few_opens_nothing(make_exchange: Make) -> None:
    """t = 4 of 5: what three holders have gives neither the seed nor the masking key, and with a fourth both."""
    exchange = make_exchange(5).until("unmask")
    owner, holders = "c00", exchange.plan.cohort[1:]
    client = exchange.clients[owner]
    masked = exchange.opened(exchange.sent["mask", owner]).vector
    rest = masked - pair_masks(exchange, owner, 4)
    for kind, secret in enumerate((client._seed, client._masking.secret)):
        shares = {exchange.server._points[name]: exchange.clients[name]._held[owner][kind] for name in holders}
        assert shamir.reconstruct(shares) == secret
        for chosen in combinations(shares, 3):
            few = {point: shares[point] for point in chosen}
            try:
                guess = shamir.reconstruct(few)
            except ValueError:
                continue
            assert guess != secret
            assert kind or (rest - stream_of(guess, 4) != exchange.vectors[owner]).all()
    assert (rest - stream_of(client._seed, 4) == exchange.vectors[owner]).all()
    with pytest.raises(Aborted) as caught:
        exchange.step(["c03", "c04"])
    assert caught.value.code == Code.CANNOT_UNMASK


def split_view(exchange: Exchange, target: str, one: set[str], colluders: set[str]) -> tuple[int, int]:
    """An active server tells the clients of `one` that all have survived, and the others that `target` dropped out.

    Returns how many shares of the target's self-mask seed and of its masking key it then has, the colluders' own among
    them. From t on of both it opens the target's vector.
    """
    exchange.until("confirm")
    everybody, server = exchange.plan.cohort, exchange.server
    honest = [name for name in everybody if name not in colluders]
    seeds, keys = set(colluders), set(colluders)
    holders = {name: {*server._neighbours[name], name} for name in everybody}
    for side, survivors in ((True, everybody), (False, tuple(name for name in everybody if name != target))):
        group = [name for name in honest if (name in one) == side]
        signed = {name: exchange.ask(name, exchange.signed(Survivors(survivors))) for name in group}
        signed |= {name: exchange.signed(confirmation(exchange, name, survivors)) for name in colluders}
        for name in group:
            told = tuple(frame for other, frame in signed.items() if other in holders[name])
            dropped = () if side or target not in holders[name] else (target,)
            request = exchange.signed(UnmaskRequest(survivors, dropped, told))
            try:
                answer = exchange.opened(exchange.ask(name, request, "unmask"))
            except Aborted:
                continue
            seeds |= {name for share in answer.self_mask_shares if share.owner == target}
            keys |= {name for share in answer.masking_key_shares if share.owner == target}
    assert seeds <= holders[target] | colluders and keys <= holders[target] | colluders
    return len(seeds & holders[target]), len(keys & holders[target])


def split_complete(make_exchange: Make, count: int, colluders: int) -> bool:
    """Whether some split opens a vector on the complete graph."""
    needed = 2 * count // 3 + 1
    for size in range(1, count - colluders + 1):
        exchange = make_exchange(count)
        names = exchange.plan.cohort
        seeds, keys = split_view(exchange, names[0], set(names[:size]), set(names[count - colluders :]))
        if seeds >= needed and keys >= needed:
            return True
    return False


@pytest.mark.parametrize(("count", "colluders"), [(5, 0), (5, 2), (6, 3), (7, 2)])
def test_a_server_that_tells_two_stories_opens_nothing(make_exchange: Make, count: int, colluders: int) -> None:
    """With fewer than 2t - n of the holders in league with it, as `secure_client` promises."""
    assert colluders < 2 * (2 * count // 3 + 1) - count
    assert not split_complete(make_exchange, count, colluders)


@pytest.mark.parametrize(("count", "colluders"), [(6, 4), (7, 3)])
def test_the_promise_ends_where_it_says(make_exchange: Make, count: int, colluders: int) -> None:
    """2t - n colluders confirm both stories: no protocol with this threshold can do more."""
    assert colluders == 2 * (2 * count // 3 + 1) - count
    assert split_complete(make_exchange, count, colluders)


def test_a_server_that_tells_two_stories_on_the_ring_opens_nothing(make_exchange: Make) -> None:
    """One half of the ring hears that its first client has survived, the other that it has not; one client colludes."""
    exchange = make_exchange(70, floor=8).until("share")
    session = exchange.server.session
    ring = sorted(exchange.plan.cohort, key=lambda name: hashlib.sha256(session + name.encode()).digest())
    half = {ring[-place] for place in range(35)}
    seeds, keys = split_view(exchange, ring[0], half, {ring[-1]})
    assert min(seeds, keys) < graph.threshold(70)


# Behind the parameter server.

DIMENSION = 6


class Door:
    """A parameter server with the methods of a `SecureServer`, so that an `Exchange` can drive it through `collect`."""

    def __init__(self, server: ParameterServer) -> None:
        self.server, self.place = server, 0
        self.waiting: list[Any] = []
        self.refused: dict[str, int] = {}

    @property
    def stage(self) -> str:
        return STAGES[self.place] if self.place < len(STAGES) else "open"

    def receive(self, frame: Any) -> None:
        self.waiting.append(frame)

    def close(self) -> dict[str, bytes]:
        before = hash_of(self.server)
        half = len(self.waiting) // 2
        collected = self.server.collect(self.stage, self.waiting[:half], self.waiting[half:])
        assert hash_of(self.server) == before, "no message may change the model"
        self.refused, self.waiting = collected.rejected, []
        if collected.aborted is not None:
            raise Aborted(Code(collected.aborted))
        self.place += 1
        return collected.frames

    def __getattr__(self, name: str) -> Any:
        return getattr(self.server._aggregator._exchange, name)


def hash_of(server: ParameterServer) -> str:
    return hashlib.sha256(server.shared().tobytes()).hexdigest()


class Run:
    """A run's folder with five clients and a parameter server whose model is 0, 1, 2...

    Client k = 1, 2... has the update (k, ..., k) / 10 and the weight k / 8.
    """

    def __init__(self, folder: Path, make_exchange: Make, **privacy: Any) -> None:
        tree = {"run": str(folder), "shards": "s", "pretrained": "p", "aggregation": "secure", "cohort": {"size": 5}}
        self.config = parse_config(tree | {"privacy": {"insecure_min_survivors": 3} | privacy}, "test")
        self.folder, self.make_exchange = folder / "checkpoints", make_exchange
        self.people = make_exchange(5).people
        self.people.server = SigningKey.kept_in(self.folder / SERVER_KEY)
        extend_roster(folder / ROSTER, self.people.roster.server, self.people.roster.clients)
        self.name = RosterFile(folder / ROSTER).read()[1]
        save_checkpoint(self.folder, Checkpoint(0, np.arange(DIMENSION, dtype=np.float32), {}), "f")
        self.codec = make_codec(self.config, DIMENSION)
        self.restart()
        self.start = hash_of(self.server)

    def restart(self) -> None:
        """A server in the old one's place, with what is on disk."""
        self.server = ParameterServer(str(self.folder), self.config, "f")

    def begin(self) -> Exchange:
        """The next round, with clients that have looked at its plan."""
        number = self.server.round() + 1
        frame = self.server.begin(number, list(self.people.names), bytes(32))
        plan = open_plan(frame, self.people.roster, self.name)
        shared, digest_ = bytes.fromhex(hash_of(self.server)), config_digest(self.config)
        vectors, rng = {}, np.random.default_rng(number)
        for place, name in enumerate(plan.cohort, 1):
            last = plan.exchange - 1
            check_plan(plan, name, last_exchange=last, backbone=bytes(32), shared=shared, config=digest_)
            update = np.full(DIMENSION, place / 10, np.float32)
            vectors[name] = self.codec.encode(update, place / 8, plan.clip_norm, 5, rng)
        return self.make_exchange(people=self.people, plan=plan, server=Door(self.server), vectors=vectors)

    def check_moved(self, absent: Iterable[str] = ()) -> None:
        """Round 1 took the weighted mean, sum k^2 / (10 sum k) over who is in the sum, and nothing else."""
        places = [place for place, name in enumerate(self.people.names, 1) if name not in set(absent)]
        mean = sum(place**2 for place in places) / (10 * sum(places))
        assert self.server.round() == 1
        assert np.abs(self.server.shared() - np.arange(DIMENSION) - mean).max() < 1e-5

    def check_given_up(self, code: Code) -> None:
        """Round 1 is gone through without a trace in the model, on disk too, and round 2 can follow."""
        figures = self.server.finish(1, str(code))
        assert figures["aborted"] == code and figures["survivors"] == 0 and "update_norm" not in figures
        for _ in range(2):
            assert self.server.round() == 1 and hash_of(self.server) == self.start
            self.restart()
        again = self.server.finish(1)
        assert set(again) <= {"noise_multiplier", "epsilon", "epsilon_server"}, "a round is finished once"

    @property
    def charged(self) -> list[int]:
        """The exchanges in the ledger on disk."""
        return [charge.exchange for charge in Ledger(self.folder).charges]


SKELLAM = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0}


def test_an_undisturbed_round_moves_the_model_by_the_weighted_mean(make_exchange: Make, tmp_path: Path) -> None:
    run = Run(tmp_path, make_exchange)
    run.begin().until("open", {"mask": ["c03"]})
    assert run.server.finish(1)["survivors"] == 4
    run.check_moved(["c03"])


@pytest.mark.parametrize(("stage", "tamper", "code"), ROWS)
def test_a_bad_message_leaves_the_model_as_it_is(
    make_exchange: Make, tmp_path: Path, stage: str, tamper: Tamper, code: Code
) -> None:
    """`Door.close` looks at the model's hash after every stage. One offender changes nothing; three end the round."""
    run = Run(tmp_path / "one", make_exchange)
    exchange = run.begin().until(stage)
    exchange.give(exchange.ask("c00"))
    good = exchange.ask(OFFENDER)
    exchange.give(tamper(exchange, OFFENDER, good))
    exchange.give(good)
    exchange.step()
    assert exchange.server.refused == {code: 1}
    exchange.until("open")
    run.server.finish(1)
    run.check_moved()

    run = Run(tmp_path / "three", make_exchange)
    exchange = run.begin().until(stage)
    exchange.give(exchange.ask("c00"))
    offenders = ("c01", "c02", "c03")
    for name in offenders:
        exchange.give(tamper(exchange, name, exchange.ask(name)))
    with pytest.raises(Aborted) as caught:
        exchange.step(offenders)
    assert exchange.server.refused == {code: 3}
    assert caught.value.code == (Code.CANNOT_UNMASK if stage == "unmask" else Code.TOO_FEW)
    run.check_given_up(caught.value.code)


@pytest.mark.parametrize("stage", STAGES)
def test_replays_leave_the_model_as_it_is(make_exchange: Make, tmp_path: Path, stage: str) -> None:
    """In round 2: everything of round 1, everything that was said before, and every message a second time."""
    run = Run(tmp_path, make_exchange)
    old = run.begin().until("open", {"mask": [OTHER]})
    assert run.server.finish(1)["survivors"] == 4
    first = run.server.shared()
    exchange = run.begin().until(stage)
    before = list(exchange.sent.values())
    answers = [exchange.ask(name) for name in exchange.inbox]
    replayed = [frame for (when, _), frame in old.sent.items() if when == stage]
    for frame in (*answers, *replayed, *before, *answers):
        exchange.give(frame)
    exchange.close()
    wanted = {"duplicate": len(answers), "bad signature": len(replayed), "wrong stage": len(before)}
    assert exchange.server.refused == {code: count for code, count in wanted.items() if count}
    exchange.until("open")
    run.server.finish(2)
    assert np.abs(run.server.shared() - first - 55 / 150).max() < 1e-5


@pytest.mark.parametrize("tamper", CORRUPT_SHARES.values(), ids=CORRUPT_SHARES)
def test_damaged_shares_leave_the_model_as_it_is(make_exchange: Make, tmp_path: Path, tamper: Tamper) -> None:
    run = Run(tmp_path / "one", make_exchange)
    exchange = run.begin().until("unmask")
    exchange.give(tamper(exchange, OFFENDER, exchange.ask(OFFENDER)))
    exchange.until("open")
    run.server.finish(1)
    run.check_moved()
    run = Run(tmp_path / "two", make_exchange)
    exchange = run.begin().until("unmask")
    for name in (OFFENDER, OTHER):
        exchange.give(tamper(exchange, name, exchange.ask(name)))
    with pytest.raises(Aborted) as caught:
        exchange.step()
    assert caught.value.code == Code.CANNOT_UNMASK
    run.check_given_up(Code.CANNOT_UNMASK)


@pytest.mark.parametrize("stage", STAGES)
def test_a_round_of_too_few_is_gone_through_and_the_next_one_follows(
    make_exchange: Make, tmp_path: Path, stage: str
) -> None:
    run = Run(tmp_path, make_exchange)
    exchange = run.begin().until(stage)
    with pytest.raises(Aborted) as caught:
        exchange.step(["c00", "c01", "c02"])
    # The exchange is over: no stage can be asked of the server any more, and it has no sum.
    for late in STAGES:
        assert run.server.collect(late, list(exchange.sent.values())).aborted == Code.LOST
    with pytest.raises(Aborted):
        run.server._aggregator.decoded(1)
    run.check_given_up(caught.value.code)
    second = run.begin()
    assert second.plan.exchange == 2 and second.plan.round == 2
    second.until("open")
    run.server.finish(2)
    assert np.abs(run.server.shared() - np.arange(DIMENSION) - 55 / 150).max() < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_the_budget_is_charged_once_masked_inputs_have_come(make_exchange: Make, tmp_path: Path, stage: str) -> None:
    """Whether or not anything is opened after. Before that nobody has given anything away."""
    run = Run(tmp_path, make_exchange, **SKELLAM)
    exchange = run.begin().until(stage)
    with pytest.raises(Aborted) as caught:
        exchange.step(["c00", "c01", "c02"])
    assert run.charged == ([] if stage in ("advertise", "share") else [1])
    run.check_given_up(caught.value.code)
    assert run.charged == ([] if stage in ("advertise", "share") else [1])


def test_the_charge_is_on_disk_before_anybody_is_told_the_survivors(make_exchange: Make, tmp_path: Path) -> None:
    run = Run(tmp_path, make_exchange, **SKELLAM)
    exchange = run.begin().until("mask")
    assert run.charged == []
    exchange.step()
    assert exchange.inbox and run.charged == [1]
    exchange.until("open")
    figures = run.server.finish(1)
    assert figures["survivors"] == 5 and figures["epsilon"] > 0
    assert run.charged == [1] and hash_of(run.server) != run.start


@pytest.mark.parametrize(("privacy", "charged"), [({}, []), (SKELLAM, [1])], ids=["without noise", "skellam"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_that_no_honest_clients_make_is_thrown_away(
    make_exchange: Make, tmp_path: Path, privacy: dict[str, Any], charged: list[int], sign: int
) -> None:
    """One client's vector lies far beyond any clip norm, and is validly signed. Five honest ones reach 8.7 units
    without noise (of a ring of 16 either way) and 14 with it (of 8,192)."""
    run = Run(tmp_path, make_exchange, **privacy)
    exchange = run.begin()
    huge = sign * (100 if privacy else 13) * int(run.codec.scale)
    exchange.vectors["c02"] = np.full(DIMENSION + 2, huge % 2**32, np.uint32)
    exchange.until("open")
    figures = run.server.finish(1)
    assert figures["aborted"] == Code.SUM_TOO_LARGE and figures["survivors"] == 0
    assert run.server.round() == 1 and hash_of(run.server) == run.start
    assert run.charged == charged


@pytest.mark.parametrize("stage", STAGES)
def test_a_server_that_died_in_mid_exchange_says_that_it_is_lost(
    make_exchange: Make, tmp_path: Path, stage: str
) -> None:
    run = Run(tmp_path, make_exchange, **SKELLAM)
    exchange = run.begin().until(stage)
    charged = run.charged
    answers = [exchange.ask(name) for name in exchange.inbox]
    run.restart()
    collected = run.server.collect(stage, answers)
    assert (collected.aborted, collected.answered, collected.frames) == ("exchange lost", 0, {})
    assert hash_of(run.server) == run.start and run.charged == charged
    run.check_given_up(Code.LOST)
    second = run.begin()
    assert second.plan.exchange == 2, "no exchange is numbered twice"
    for frame in answers:
        second.give(frame)
    second.until("open")
    assert run.server.finish(2)["survivors"] == 5


def test_a_round_that_is_finished_without_a_word_about_its_exchange_is_lost(
    make_exchange: Make, tmp_path: Path
) -> None:
    run = Run(tmp_path, make_exchange)
    run.begin().until("open")
    run.restart()
    # Nothing is gone through: the caller may run the round again, or give it up.
    assert run.server.finish(1) == {"aborted": Code.LOST}
    assert run.server.round() == 0 and hash_of(run.server) == run.start
    run.check_given_up(Code.LOST)


def test_an_opened_sum_is_applied_once(make_exchange: Make, tmp_path: Path) -> None:
    run = Run(tmp_path, make_exchange)
    run.begin().until("open")
    run.server.finish(1)
    once = hash_of(run.server)
    with contextlib.suppress(ValueError):
        run.server.finish(2)
    assert hash_of(run.server) == once


def test_an_opened_sum_is_not_taken_for_another_rounds(make_exchange: Make, tmp_path: Path) -> None:
    run = Run(tmp_path, make_exchange)
    run.begin().until("open")
    with contextlib.suppress(ValueError):
        run.server.finish(2)
    assert hash_of(run.server) == run.start


# What a client never sends, and how much noise it adds.


@pytest.mark.filterwarnings("ignore:overflow encountered in dot")
@pytest.mark.parametrize("mechanism", [{}, SKELLAM], ids=["without noise", "skellam"])
@pytest.mark.parametrize(
    ("value", "weight"),
    [(np.nan, 1.0), (np.inf, 1.0), (-np.inf, 1.0), (1e300, 1.0), (1.0, np.nan), (1.0, np.inf), (1.0, -1.0)],
)
def test_a_client_refuses_to_send_what_is_not_finite(mechanism: dict[str, Any], value: float, weight: float) -> None:
    codec = UpdateCodec(PrivacyConfig(**mechanism), 1.0 if mechanism else 0.0, 3, 5, Limits(3))
    update = np.array([0.0, value, 0.0])
    with pytest.raises(Aborted) as caught:
        codec.encode(update, weight, 1.0, 5, np.random.default_rng(0))
    assert caught.value.code == Code.NOT_FINITE


def check_noise(survivors: int) -> None:
    """Ten clients, of whom seven must stay: the sum over seven has z = 2 times a client's largest effect, 2^18 steps,
    as its deviation, and every further survivor adds a seventh of that variance."""
    values = 20_000
    codec = UpdateCodec(PrivacyConfig(**SKELLAM | {"noise_multiplier": 2.0}), 2.0, values, 10, Limits(3))
    rng = np.random.default_rng(survivors)
    still = np.zeros(values, np.float32)
    total = sum(codec.encode(still, 1.0, 1.0, 10, rng).view(np.int32).astype(np.int64) for _ in range(survivors))
    noisy = total[:values] / 2.0**18
    # The estimate of a variance from so many values is off by 1% as a rule.
    assert noisy.var() == pytest.approx(4 * survivors / 7, rel=0.05)
    assert abs(noisy.mean()) < 5 * noisy.std() / math.sqrt(values)


@pytest.mark.parametrize("survivors", [7, 8, 10])
def test_the_noise_in_a_sum_is_what_was_accounted_for(survivors: int) -> None:
    check_noise(survivors)


def check_reference_case() -> None:
    """z = 1, q = 0.01, 1000 rounds, delta = 1e-5: 1.8282 by Google's accountant, 1.8384 by PRV."""
    reference = [accounting.Rounds(accounting.Noise("gaussian", 1.0), 0.01, 1000)]
    assert 1.82 <= accounting.epsilon(reference, 1e-5) <= 1.86


def test_the_reference_case_of_the_accountant() -> None:
    check_reference_case()


def check_weighted_sum(make_exchange: Make) -> None:
    """Client k gives k times its update: the sum is the weighted one, dropouts or not."""
    updates = {name: np.arange(4, dtype=np.uint32) + place for place, name in enumerate(EVERYBODY)}
    vectors = {name: update * np.uint32(weight_of(name)) for name, update in updates.items()}
    for absent in ([], ["c03"]):
        make_exchange(7, vectors=vectors).finish({"mask": absent})


def weight_of(name: str) -> int:
    return int(name[1:]) + 1


def test_what_is_weighted_before_it_is_masked_sums_up(make_exchange: Make) -> None:
    check_weighted_sum(make_exchange)


# Mutants: what is known to go wrong in such code, and the check above that notices.

Patch = Callable[[pytest.MonkeyPatch], None]


def constant_masks(patch: pytest.MonkeyPatch) -> None:
    """Every stream from one key."""
    apply = Mask._apply
    patch.setattr(Mask, "_apply", lambda self, operation, vector, key: apply(self, operation, vector, bytes(32)))


def no_masks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Mask, "_apply", lambda self, operation, vector, key: None)


def no_pairwise_masks(patch: pytest.MonkeyPatch) -> None:
    """The self mask alone, which the server takes off one by one: a stream after a client's first is left out."""
    apply = Mask._apply
    used: set[Mask] = set()

    def first_only(self: Mask, operation: np.ufunc, vector: np.ndarray, key: bytes) -> None:
        if self not in used:
            used.add(self)
            apply(self, operation, vector, key)

    patch.setattr(Mask, "_apply", first_only)


original_mask = secure_client.SecureClient.mask


def seeds_of_the_plan(patch: pytest.MonkeyPatch) -> None:
    """The self mask from what the server knows."""
    init = secure_client.SecureClient.__init__

    def mutant(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        self._seed = digest(self._context, self._name.encode())

    patch.setattr(secure_client.SecureClient, "__init__", mutant)


def pairs_of_the_session(patch: pytest.MonkeyPatch) -> None:
    """Pairwise masks from names and session, as in the paper's own code: the server can make them all."""
    patch.setattr(
        ExchangeKey,
        "derive",
        lambda self, peer, session, label, one, other: digest(session, label.encode(), one.encode(), other.encode()),
    )


def small_seeds(patch: pytest.MonkeyPatch) -> None:
    """Keys folded to 32 bits, as in Flower's SecAgg+."""
    apply = Mask._apply
    patch.setattr(
        Mask, "_apply", lambda self, operation, vector, key: apply(self, operation, vector, key[:4] + bytes(28))
    )


@pytest.mark.parametrize(
    ("mutate", "reason"),
    [
        (constant_masks, "the same mask twice"),
        (no_masks, "the same mask twice"),
        (seeds_of_the_plan, "the same mask twice"),
        (no_pairwise_masks, "the same mask twice"),
        (pairs_of_the_session, "not the specified masks"),
        (small_seeds, "not the specified masks"),
    ],
)
def test_masks_that_the_server_could_make_are_noticed(
    make_exchange: Make, monkeypatch: pytest.MonkeyPatch, mutate: Patch, reason: str
) -> None:
    with monkeypatch.context() as patch:
        mutate(patch)
        with pytest.raises(AssertionError, match=reason):
            check_masks(make_exchange)
    check_masks(make_exchange)


def test_noise_divided_by_twenty_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = noise.skellam
    with monkeypatch.context() as patch:
        patch.setattr(noise, "skellam", lambda *arguments: whole(*arguments) // 20)
        with pytest.raises(AssertionError):
            check_noise(7)
    check_noise(7)


def test_a_mask_that_is_put_on_before_the_weight_is_noticed(
    make_exchange: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the masks are weighted too, and do not cancel."""

    def mutant(self: Any, frame: bytes, vector: np.ndarray) -> bytes:
        weight = np.uint32(weight_of(self._name))
        outer = wire.decode(Frame, original_mask(self, frame, vector // weight))
        masked = wire.decode(MaskedInput, outer.body)
        return protocol.seal_frame(self._key, self._context, replace(masked, vector=masked.vector * weight))

    with monkeypatch.context() as patch:
        patch.setattr(secure_client.SecureClient, "mask", mutant)
        with pytest.raises(AssertionError):
            check_weighted_sum(make_exchange)
    check_weighted_sum(make_exchange)


@pytest.mark.filterwarnings("ignore:GDP accounting is experimental")
def test_the_accountant_that_reports_too_little_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GDP accountant says 1.6177 where 1.83 is right."""
    with monkeypatch.context() as patch:
        patch.setattr("opacus.accountants.PRVAccountant", GaussianAccountant)
        reference = [accounting.Rounds(accounting.Noise("gaussian", 1.0), 0.01, 1000)]
        assert accounting.epsilon(reference, 1e-5) == pytest.approx(1.6177, abs=1e-3)
        with pytest.raises(AssertionError):
            check_reference_case()
