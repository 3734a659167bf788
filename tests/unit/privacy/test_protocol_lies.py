"""What a client ends the exchange on: a server's lies, and plans that are not what was agreed on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from fedtalk_ray.messages import Advertised, Advertisement, Delivered, SealedFrom, Survivors
from fedtalk_ray.privacy import protocol
from fedtalk_ray.privacy.keys import ExchangeKey, SigningKey
from fedtalk_ray.privacy.protocol import STAGES, Code, Rejected
from fedtalk_ray.privacy.secure_client import check_plan, open_plan
from tests.unit.privacy.conftest import Exchange, aborts
from tests.unit.privacy.tampering import (
    EVERYBODY,
    OUTSIDER,
    SMALL_ORDER,
    Make,
    Tamper,
    advertised_by,
    by_stage,
    changed,
    confirmation,
    flipped,
    in_context_of,
    others_key,
    servers_key,
)

VICTIM = "c02"

GONE = "c06"
"""Of seven clients, of whom m_min = t = 5 must stay: who is lied to, and who drops out where stage 4 is lied about."""


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


def partnering(change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Tamper:
    """Others as partners, and of the shares those of partners."""

    def shares(_: Exchange, message: Any) -> tuple[SealedFrom, ...]:
        return tuple(share for share in message.shares if share.owner in change(message.partners))

    return changed(partners=lambda _, message: change(message.partners), shares=shares)


def unreadable(count: int) -> Tamper:
    def damage(shares: tuple[SealedFrom, ...]) -> list[SealedFrom]:
        return [replace(share, ciphertext=flipped(share.ciphertext)) for share in shares[:count]] + [*shares[count:]]

    return delivering(damage)


def shifted(shares: tuple[SealedFrom, ...]) -> list[SealedFrom]:
    """Everybody's ciphertext under the next one's name."""
    return [replace(share, owner=other.owner) for share, other in zip(shares, (*shares[1:], shares[0]), strict=True)]


def naming(*names: str) -> Tamper:
    return changed(clients=names)


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
    },
    Code.BAD_SIGNATURE: {
        "a bit of the signature flipped": lambda exchange, name, honest: exchange.flipped(honest, -1),
        "signed by a client": changed(others_key),
        "of another exchange": in_context_of(exchange=7),
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
        "two others with one key": altering(
            "c00", changed(encryption_key=lambda exchange, _: advertised_by(exchange, "c01").masking_key)
        ),
        "a short key": altering("c00", changed(encryption_key=bytes(31))),
    },
    ("share", Code.BAD_SIGNATURE): {
        "another's keys by the server's hand": altering("c00", changed(servers_key, masking_key=bytes(31) + b"1")),
        "another's keys of an earlier exchange": altering("c00", in_context_of(exchange=7)),
    },
    ("share", Code.UNKNOWN_CLIENT): {
        "a stranger who is enrolled": adding(lambda exchange, _: stranger(exchange, OUTSIDER)),
        "a stranger whom nobody knows": adding(lambda exchange, _: stranger(exchange, "s", SigningKey.generate())),
    },
    ("share", Code.TOO_FEW): {
        "too few neighbours": advertising(lambda _, all: [all["c00"], all[VICTIM]]),
    },
    ("mask", Code.TOO_FEW): {
        "too few partners": partnering(lambda partners: partners[:3]),
    },
    ("mask", Code.WRONG_SHARES): {
        "a share of a stranger": delivering(lambda shares: [*shares, replace(shares[0], owner=OUTSIDER)]),
        "a share of its own": delivering(lambda shares: [*shares, replace(shares[0], owner=VICTIM)]),
        "a share of one who is no partner": changed(partners=lambda _, message: message.partners[1:]),
        "a stranger as a partner": partnering(lambda partners: (*partners, OUTSIDER)),
        "itself as a partner": partnering(lambda partners: (*partners, VICTIM)),
    },
    ("confirm", Code.INCONSISTENT): {
        "itself not among the survivors": naming("c00", "c01", "c03", "c04", "c05", "c06"),
        "a stranger among the survivors": naming(*EVERYBODY, OUTSIDER),
        "a survivor named twice": naming("c00", "c00", "c01", VICTIM, "c03", "c04"),
    },
    ("confirm", Code.TOO_FEW): {"survivors below m_min": naming("c00", "c01", VICTIM, "c03")},
    ("unmask", Code.TOO_FEW): {
        "fewer than t confirmations": changed(confirmations=lambda _, request: request.confirmations[:4]),
        "one confirmation many times": changed(confirmations=lambda _, request: request.confirmations[:1] * 9),
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
        "a confirmation by a stranger": confirmed_by(
            lambda exchange, name: exchange.signed(confirmation(exchange, name)), [OUTSIDER]
        ),
    },
}

CASES = by_stage(ANY_LIE, STAGES[1:], LIES)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_client_ends_the_exchange_on_a_lie_and_the_others_go_on(make_exchange: Make, stage: str) -> None:
    exchange = make_exchange(7)
    exchange.until(stage, {"mask": [GONE]} if stage == "unmask" else None)
    for what, lie, code in CASES[stage]:
        assert exchange.abort_of_twin(VICTIM, lie(exchange, VICTIM, exchange.inbox[VICTIM])) == code, what
    exchange.step([VICTIM])
    lost = {GONE} if stage == "unmask" else {VICTIM} if stage in ("share", "mask") else set()
    assert set(exchange.finish()) == set(EVERYBODY) - lost


@pytest.mark.parametrize("damage", [unreadable(6), delivering(shifted), delivering(lambda _: ())])
def test_shares_that_cannot_be_read_are_left_out(make_exchange: Make, damage: Tamper) -> None:
    """They are of others' keys, which are needed only if those drop out."""
    exchange = make_exchange(7).until("mask")
    frame = damage(exchange, VICTIM, exchange.inbox[VICTIM])
    assert exchange.give(exchange.ask(VICTIM, frame)) is None
    assert len(exchange.finish()) == 7


@pytest.mark.parametrize("done", range(6))
def test_a_stage_out_of_order_ends_the_exchange(make_exchange: Make, done: int) -> None:
    """After `done` answers a client is asked for any stage but the one that follows; after the last one for any."""
    exchange = make_exchange(5).until((*STAGES, "open")[done])
    for asked in STAGES:
        if done == 5 or asked != STAGES[done]:
            frame = exchange.heard.get((asked, "c00"), b"")
            assert exchange.abort_of_twin("c00", frame, asked) == Code.WRONG_STAGE


@pytest.mark.parametrize(("which", "stage"), [("encryption_key", "share"), ("masking_key", "mask")])
def test_a_key_of_small_order_ends_the_exchange(make_exchange: Make, which: str, stage: str) -> None:
    """A client in league with the server wants a secret that everybody knows: where it is first used, it is noticed."""
    exchange = make_exchange(7)
    forged = exchange.altered(exchange.ask("c00"), **{which: SMALL_ORDER})
    frames = (forged, *(exchange.ask(name) for name in EVERYBODY[1:]))
    told = exchange.signed(Advertised(frames))
    if stage == "share":
        assert exchange.abort_of(VICTIM, told, "share") == Code.BAD_KEYS
        return
    exchange.ask(VICTIM, told, "share")
    delivered = exchange.signed(Delivered(tuple(name for name in EVERYBODY if name != VICTIM), ()))
    assert exchange.abort_of(VICTIM, delivered, "mask") == Code.BAD_KEYS


@pytest.mark.parametrize(
    ("name", "own", "planned", "code"),
    [
        ("c00", {}, {}, None),
        ("c00", {"last_exchange": 3}, {}, Code.OLD_ROUND),
        ("c00", {"last_exchange": 9}, {}, Code.OLD_ROUND),
        *[("c00", {what: b"1" * 32}, {}, Code.NOT_PINNED) for what in ("backbone", "shared", "config")],
        ("c00", {"clip_norm": 1.0}, {}, None),
        ("c00", {"clip_norm": 2.0}, {}, Code.NOT_PINNED),
        *[("c00", {}, {"clip_norm": norm}, Code.NOT_PINNED) for norm in (0.0, -1.0, math.inf, math.nan)],
        *[("c00", {}, {"weight_scale": s}, Code.NOT_PINNED) for s in (0.5, 0.0, -1.0, math.inf, math.nan)],
        (OUTSIDER, {}, {}, Code.NOT_IN_ROUND),
    ],
)
def test_a_client_takes_part_only_in_a_new_exchange_about_what_it_has_itself(
    make_exchange: Make, name: str, own: dict[str, Any], planned: dict[str, Any], code: Code | None
) -> None:
    plan = make_exchange(number=3, **planned).plan
    pinned = {"last_exchange": 2, "backbone": plan.backbone, "shared": plan.shared, "config": plan.config}
    if code is None:
        check_plan(plan, name, **pinned | own)
        return
    with aborts(code):
        check_plan(plan, name, **pinned | own)


def test_a_plan_must_be_of_this_run_and_by_this_server(make_exchange: Make) -> None:
    exchange = make_exchange()
    roster, good = exchange.people.roster, exchange.server.plan_frame()
    assert open_plan(good, roster, "run") == exchange.plan
    here = protocol.run_context("run")
    elsewhere = replace(exchange.plan, run="another")
    twice = replace(exchange.plan, cohort=exchange.plan.cohort * 3)
    for frame, run, code in (
        (good, "another", Code.BAD_SIGNATURE),
        (exchange.signed(elsewhere, context=here), "run", Code.NOT_PINNED),
        (exchange.signed(twice, context=here), "run", Code.NOT_PINNED),
        (exchange.signed(exchange.plan, exchange.people.keys["c00"], here), "run", Code.BAD_SIGNATURE),
        (exchange.signed(exchange.plan), "run", Code.BAD_SIGNATURE),
        (exchange.flipped(good, -1), "run", Code.BAD_SIGNATURE),
        (good[:-1], "run", Code.MALFORMED),
        (exchange.signed(Survivors((), ()), context=here), "run", Code.WRONG_STAGE),
    ):
        with aborts(code):
            open_plan(frame, roster, run)


def test_a_flood_is_refused_before_it_is_read(make_exchange: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = make_exchange()
    flood = exchange.altered(exchange.ask("c00"), encryption_key=bytes(1 << 20))
    told = exchange.signed(Advertised((bytes(1 << 20),)))
    plan = exchange.signed(replace(exchange.plan, run="r" * (1 << 20)), context=protocol.run_context("run"))

    def read(*_: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(protocol, "decode", read)
    assert exchange.give(flood) == Code.WRONG_LENGTH
    assert exchange.abort_of("c00", told, "share") == Code.WRONG_LENGTH
    with aborts(Code.WRONG_LENGTH):
        open_plan(plan, exchange.people.roster, "run")


def test_the_longest_frame_by_hand() -> None:
    """1024 bytes for each of five clients and two more, 4 for each value, 8 for each pair where all speak of all."""
    for values, of_all, largest in ((0, False, 7168), (1000, False, 11_168), (0, True, 7368)):
        protocol.check_size(bytes(largest), 5, values, of_all)
        with pytest.raises(Rejected) as refused:
            protocol.check_size(bytes(largest + 1), 5, values, of_all)
        assert refused.value.code == Code.WRONG_LENGTH


def test_every_part_of_a_plan_is_in_the_context_and_whose_keys_count(make_exchange: Make) -> None:
    exchange = make_exchange()
    plan, roster = exchange.plan, exchange.people.roster
    others = {
        "run": "other",
        "exchange": 9,
        "round": 9,
        "backbone": b"1" * 32,
        "shared": b"1" * 32,
        "config": b"1" * 32,
        "clip_norm": 2.0,
        "cohort": plan.cohort[1:],
        "weight_scale": 2.0,
    }
    assert set(others) == vars(plan).keys() - {"left_out"}
    here = protocol.context_of(plan, roster)
    contexts = {here, *(protocol.context_of(replace(plan, **{k: v}), roster) for k, v in others.items())}
    assert len(contexts) == 10
    assert protocol.context_of(replace(plan, cohort=plan.cohort[::-1]), roster) == here
    for other in (
        replace(roster, server=bytes(32)),
        replace(roster, clients={**roster.clients, "c00": bytes(32)}),
        replace(roster, clients={name: key for name, key in roster.clients.items() if name != "c00"}),
    ):
        assert protocol.context_of(plan, other) not in contexts
    assert protocol.context_of(plan, replace(roster, clients={**roster.clients, "new": bytes(32)})) == here
