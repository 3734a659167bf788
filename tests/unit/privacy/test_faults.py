"""Who is blamed for what: dealers and holders that lie in every way, and honest ones against whom others lie."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import pytest

from fedtalk_ray.messages import OpenedShare, SealedShare
from fedtalk_ray.privacy import protocol, shamir
from fedtalk_ray.privacy.faults import Fault, Secret, faults
from fedtalk_ray.privacy.protocol import STAGES, Aborted, Code
from tests.unit.privacy.conftest import Exchange, aborts
from tests.unit.privacy.tampering import OFFENDER, Make

COUNT = 9
"""Clients: t = 7, so two of nine shares may be missing; four may be in league."""

LIARS = ("c05", "c06", "c07", "c08")


def spoilt(exchange: Exchange, holders: Collection[str]) -> Callable[[SealedShare], SealedShare]:
    """Something that nobody can read for these holders."""
    return lambda share: replace(share, ciphertext=bytes(49)) if share.holder in holders else share


def deals(exchange: Exchange, change: Callable[[SealedShare], SealedShare]) -> None:
    """The offender's answer to the open stage with what it deals changed."""
    frame = exchange.ask(OFFENDER)
    shares = tuple(change(share) for share in exchange.opened(frame).shares)
    assert exchange.give(exchange.altered(frame, shares=shares)) is None


def complain(exchange: Exchange, holders: Collection[str], about: str) -> None:
    """These confirm the survivors with a complaint that is not true."""
    for holder in holders:
        frame = exchange.ask(holder)
        place = sorted(exchange.plan.cohort).index(about) + 1
        assert exchange.give(exchange.altered(frame, complaints=(place,))) is None


def keep_back(exchange: Exchange, holders: Collection[str], owner: str) -> None:
    """These answer the last stage without the owner's share."""
    for holder in holders:
        answer = exchange.opened(exchange.ask(holder))
        given = tuple(share for share in answer.self_mask_shares if share.owner != owner)
        assert exchange.give(exchange.signed(replace(answer, self_mask_shares=given))) is None


def lost(exchange: Exchange, absent: dict[str, list[str]] | None = None) -> dict[str, Fault]:
    with aborts(Code.CANNOT_UNMASK):
        exchange.finish(absent)
    return exchange.server.faults


@pytest.mark.parametrize("dealt", ["mask", "share"])
def test_a_dealer_that_answers_complaints_spoils_nothing(make_exchange: Make, dealt: str) -> None:
    """It must open what it had committed to, and then the sum comes out. Of a survivor's key nobody complains."""
    exchange = make_exchange(COUNT).until(dealt)
    deals(exchange, spoilt(exchange, [name for name in exchange.plan.cohort if name != OFFENDER]))
    assert len(exchange.finish()) == COUNT
    assert exchange.server.faults == {}
    assert exchange.opened(exchange.sent["confirm", "c00"]).complaints == ((2,) if dealt == "mask" else ())


@pytest.mark.parametrize(
    ("dealt", "leaves", "holders", "fault"),
    [
        ("mask", "unmask", (*LIARS, "c04"), Fault.USELESS_SHARES),
        ("share", "mask", (*LIARS, "c04"), Fault.USELESS_SHARES),
        ("mask", "unmask", LIARS, Fault.UNANSWERED),
        ("mask", "unmask", LIARS[:2], Fault.UNANSWERED),
    ],
)
def test_a_dealer_of_useless_shares_that_falls_silent_is_proven_by_more_than_can_be_in_league(
    make_exchange: Make, dealt: str, leaves: str, holders: tuple[str, ...], fault: Fault
) -> None:
    """The first of them can read its share, and it is not the one that was committed to."""
    exchange = make_exchange(COUNT).until(dealt)
    unread = spoilt(exchange, holders[1:])
    deals(
        exchange,
        lambda share: replace(unread(share), commitment=bytes(32)) if share.holder == holders[0] else unread(share),
    )
    assert lost(exchange, {leaves: [OFFENDER]}) == {OFFENDER: fault}


def test_a_dealer_that_opens_another_share_than_it_dealt_is_proven(make_exchange: Make) -> None:
    exchange = make_exchange(COUNT).until("mask")
    deals(exchange, spoilt(exchange, LIARS))
    exchange.until("unmask")
    answer = exchange.ask(OFFENDER)
    opened = tuple(OpenedShare(each.holder, bytes(33)) for each in exchange.opened(answer).opened)
    assert {each.holder for each in opened} == set(LIARS)
    assert exchange.give(exchange.altered(answer, opened=opened)) is None
    assert lost(exchange)[OFFENDER] == Fault.WRONG_OPENING


@pytest.mark.parametrize("lies_about", ["seed", "key"])
def test_shares_of_another_secret_are_proof(make_exchange: Make, lies_about: str) -> None:
    """Every one is what was committed to and can be read; together they give nothing that was promised."""
    exchange = make_exchange(COUNT).until("mask" if lies_about == "seed" else "share")
    with pytest.MonkeyPatch.context() as patch:
        split: Any = shamir.split
        patch.setattr(shamir, "split", lambda secret, *rest: split(bytes(32), *rest))
        assert exchange.give(exchange.ask(OFFENDER)) is None
    absent = {"mask": [OFFENDER]} if lies_about == "key" else {}
    assert lost(exchange, absent) == {OFFENDER: Fault.WRONG_SHARES}


@pytest.mark.parametrize("there", [True, False])
def test_false_complaints_prove_nothing(make_exchange: Make, there: bool) -> None:
    """What the liars keep back after they complained is opened by a dealer who is there; else the round is lost."""
    exchange = make_exchange(COUNT).until("confirm")
    complain(exchange, LIARS, "c00")
    exchange.until("unmask")
    keep_back(exchange, LIARS, "c00")
    if there:
        assert len(exchange.finish()) == COUNT
        assert exchange.server.faults == {}
    else:
        assert lost(exchange, {"unmask": ["c00"]}) == {"c00": Fault.UNANSWERED}


@pytest.mark.parametrize("keeps_back", ["one share", "all shares", "altered shares"])
def test_who_signed_for_a_share_and_does_not_give_it_is_proven(make_exchange: Make, keeps_back: str) -> None:
    exchange = make_exchange(COUNT).until("unmask")
    answer = exchange.opened(exchange.ask(OFFENDER))
    shares = answer.self_mask_shares
    given = {
        "one share": shares[:-1],
        "all shares": (),
        "altered shares": tuple(replace(share, value=bytes(33)) for share in shares),
    }[keeps_back]
    assert exchange.give(exchange.signed(replace(answer, self_mask_shares=given))) is None
    assert len(exchange.finish()) == COUNT
    assert exchange.server.faults == {OFFENDER: Fault.KEPT_BACK}


def test_who_falls_silent_in_a_lost_round_is_suspected(make_exchange: Make) -> None:
    exchange = make_exchange(COUNT).until("unmask")
    assert lost(exchange, {"unmask": list(LIARS[:3])}) == dict.fromkeys(LIARS[:3], Fault.SILENT)
    for stage in STAGES[:4]:
        exchange = make_exchange(COUNT).until(stage)
        with pytest.raises(Aborted, match="too few"):
            exchange.step(LIARS[:3])
        assert exchange.server.faults == dict.fromkeys(LIARS[:3], Fault.SILENT)


def test_complaints_about_nobody_are_refused(make_exchange: Make) -> None:
    exchange = make_exchange(COUNT).until("confirm", {"advertise": ["c03"]})
    frame = exchange.ask(OFFENDER)
    before = exchange.state()
    for complaints in ((0,), (COUNT,), (2, 2), (3, 2), (1, 2**63)):
        assert exchange.give(exchange.altered(frame, complaints=complaints)) == Code.MALFORMED
        assert exchange.state() == before
    assert exchange.give(frame) is None
    assert len(exchange.finish({"unmask": ["c02"]})) == COUNT - 1
    assert exchange.server.faults == {}, "nobody lied"


def test_only_survivors_who_complained_are_told_a_share(make_exchange: Make) -> None:
    """A liar's complaint in another session, or about another set of survivors, or of no survivor opens nothing."""
    exchange = make_exchange(COUNT).until("confirm", {"mask": ["c08"]})
    right = protocol.survivors_hash(exchange.server.session, exchange.server.survivors)
    assert exchange.server.survivors == tuple(f"c0{number}" for number in range(8))
    for name in exchange.server.survivors:
        assert exchange.give(exchange.ask(name)) is None
    exchange.close()
    request = exchange.opened(exchange.inbox["c00"])
    confirmed = exchange.opened(exchange.sent["confirm", "c07"])
    assert confirmed.survivors == right
    lies = [replace(confirmed, complaints=(1,), survivors=bytes(32)), replace(confirmed, client="c08", complaints=(1,))]
    forged = exchange.signed(replace(confirmed, complaints=(1,)), exchange.people.keys["c06"])
    frames = (*request.confirmations, *(exchange.signed(lie) for lie in lies), forged)
    answer = exchange.ask("c00", exchange.signed(replace(request, confirmations=frames)))
    assert exchange.opened(answer).opened == ()


def test_of_two_secrets_by_hand() -> None:
    """b complained of a and c and fell silent with a and d; c answers, and gives nothing of what it signed for."""
    secrets = [Secret("a", "bcd", "", missing=True), Secret("c", "ab", "a", missing=True)]
    found = faults(secrets, "c", {"b": "ac"}, tolerated=1)
    assert found == {"a": Fault.UNANSWERED, "c": Fault.KEPT_BACK, "d": Fault.SILENT}
    enough = [replace(secret, missing=False) for secret in secrets]
    assert faults(enough, "c", {"b": "ac"}, tolerated=1) == {"c": Fault.KEPT_BACK}
