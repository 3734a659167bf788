"""What a client ends the exchange on: a server's lies, and plans that are not what was agreed on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from fedtalk_ray.messages import (
    Advertised,
    Advertisement,
    Plan,
    SealedFrom,
    Survivors,
    UnmaskRequest,
)
from fedtalk_ray.privacy import protocol
from fedtalk_ray.privacy.keys import ExchangeKey, SigningKey
from fedtalk_ray.privacy.protocol import STAGES, Aborted, Code
from fedtalk_ray.privacy.secure_client import check_plan, open_plan
from tests.unit.privacy.conftest import People
from tests.unit.privacy.tampering import (
    EVERYBODY,
    OUTSIDER,
    SMALL_ORDER,
    Make,
    Tamper,
    advertised_by,
    changed,
    confirmation,
    flipped,
    fresh_key,
    in_context_of,
    others_key,
    rows,
    servers_key,
)

if TYPE_CHECKING:
    from tests.unit.privacy.conftest import Exchange


# What a client ends the exchange on. Seven clients, of whom m_min = t = 5 must stay, so the other six go on.

VICTIM = "c02"

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
        "too few partners": partnering(lambda partners: partners[:3]),
        "no partners": partnering(lambda partners: ()),
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
        "a confirmation by a stranger": confirmed_by(
            lambda exchange, name: exchange.signed(confirmation(exchange, name)), [OUTSIDER]
        ),
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


def test_of_those_who_are_lost_no_seed_is_opened_and_of_the_survivors_no_key(make_exchange: Make) -> None:
    """Though the client holds a key share of everybody, and is sent everybody's seed shares."""
    exchange = make_exchange(7).until("confirm")
    told = EVERYBODY[:6]
    sealed = tuple(
        SealedFrom(name, share.ciphertext, share.commitment)
        for name in EVERYBODY
        for share in exchange.opened(exchange.sent["mask", name]).shares
        if share.holder == VICTIM != name
    )
    story = exchange.signed(Survivors(told, sealed))
    confirmed = [exchange.ask(name, story) for name in told]
    request = exchange.signed(UnmaskRequest(tuple(confirmed)))
    answer = exchange.opened(exchange.ask(VICTIM, request, "unmask"))
    assert {share.owner for share in answer.self_mask_shares} == set(told)
    assert {share.owner for share in answer.masking_key_shares} == {GONE}


@pytest.mark.parametrize("damage", [unreadable(2), unreadable(6), delivering(shifted), delivering(lambda _: ())])
def test_shares_that_cannot_be_read_are_left_out(make_exchange: Make, damage: Tamper) -> None:
    """They are of others' keys, which are needed only if those drop out."""
    exchange = make_exchange(7).until("mask")
    frame = damage(exchange, VICTIM, exchange.inbox[VICTIM])
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
        dealt = exchange.opened(exchange.sent["share", "c01"]).shares
        sizes = {"c00": 0} | dict.fromkeys(EVERYBODY[1:], 49)
        shares = tuple(replace(share, ciphertext=bytes(sizes[share.holder])) for share in dealt)
        assert exchange.give(exchange.altered(exchange.sent["share", "c01"], client="c00", shares=shares)) is None
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
        ("c00", {"clip_norm": 1.0}, None),
        ("c00", {"clip_norm": 2.0}, Code.NOT_PINNED),
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
        (exchange.signed(Survivors((), ()), context=here), "run", Code.WRONG_STAGE),
    ):
        with pytest.raises(Aborted) as caught:
            open_plan(frame, roster, run)
        assert caught.value.code == code


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.inf, math.nan])
def test_a_clip_norm_that_is_none_is_refused_though_it_may_be_adapted(make_exchange: Make, clip_norm: float) -> None:
    plan = replace(make_exchange(number=3).plan, clip_norm=clip_norm)
    with pytest.raises(Aborted) as caught:
        check_plan(plan, "c00", **pinned(plan))
    assert caught.value.code == Code.NOT_PINNED


def test_a_flood_is_refused_before_it_is_read(make_exchange: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of 160 MB, rightly signed, was read: by the server from a client, by a client from the server."""
    exchange = make_exchange()
    flood = exchange.altered(exchange.ask("c00"), encryption_key=bytes(1 << 20))
    told = exchange.signed(Advertised((bytes(1 << 20),)))
    plan = exchange.signed(replace(exchange.plan, run="r" * (1 << 20)), context=protocol.run_context("run"))

    def read(*_: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(protocol, "decode", read)
    assert exchange.give(flood) == Code.WRONG_LENGTH
    assert exchange.abort_of("c00", told, "share") == Code.WRONG_LENGTH
    with pytest.raises(Aborted) as caught:
        open_plan(plan, exchange.people.roster, "run")
    assert caught.value.code == Code.WRONG_LENGTH


@pytest.mark.parametrize("count", [5, 70])
def test_no_frame_is_larger_than_is_allowed_however_long_names_are(make_exchange: Make, count: int) -> None:
    """Names of 255 bytes, as long as a folder's may be."""
    people = People(f"{place:03}" + "n" * 252 for place in range(count))
    exchange = make_exchange(count, people=people, floor=3 if count == 5 else 8, length=1000)
    exchange.finish({"mask": [people.names[1]]} if count > 5 else None)
    for (stage, _), frame in exchange.sent.items():
        protocol.check_size(frame, count, 1000 if stage == "mask" else 0)
    for (stage, _), frame in exchange.heard.items():
        protocol.check_size(frame, count, of_all=stage == "unmask")


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
    # Whom the server leaves out is its word, and no part of the round.
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
    # Who is enrolled and takes no part changes nothing: rosters grow while rounds go on.
    assert protocol.context_of(plan, replace(roster, clients={**roster.clients, "new": bytes(32)})) == here


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


def test_a_plan_names_nobody_twice(make_exchange: Make) -> None:
    """Sixteen names written 120 times made clients share the noise of 1,920: a ninth of it was left in the sum."""
    exchange = make_exchange(4)
    plan = replace(exchange.plan, cohort=exchange.plan.cohort * 3)
    frame = exchange.signed(plan, context=protocol.run_context("run"))
    with pytest.raises(Aborted) as caught:
        open_plan(frame, exchange.people.roster, "run")
    assert caught.value.code == Code.NOT_PINNED
