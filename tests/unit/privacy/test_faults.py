"""Who is blamed for what: dealers and holders that lie in every way, and honest ones against whom others lie."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.federation.left_out import LeftOut
from fedtalk_ray.messages import OpenedShare, SealedShare
from fedtalk_ray.privacy import protocol, shamir
from fedtalk_ray.privacy.faults import PROVEN, Fault, Secret, faults
from fedtalk_ray.privacy.graph import tolerated
from fedtalk_ray.privacy.protocol import Aborted, Code
from tests.unit.privacy.conftest import people_of
from tests.unit.privacy.tampering import OFFENDER, Make

if TYPE_CHECKING:
    from tests.unit.privacy.conftest import Exchange

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
    with pytest.raises(Aborted) as caught:
        exchange.finish(absent)
    assert caught.value.code == Code.CANNOT_UNMASK
    return exchange.server.faults


def test_an_exchange_without_lies_blames_nobody(make_exchange: Make) -> None:
    exchange = make_exchange(COUNT)
    exchange.finish({"mask": ["c03"], "unmask": ["c02"]})
    assert exchange.server.faults == {}


@pytest.mark.parametrize("spoils", [3, 8])
def test_a_dealer_that_answers_complaints_spoils_nothing(make_exchange: Make, spoils: int) -> None:
    """It must open what it had committed to, and then the sum comes out."""
    exchange = make_exchange(COUNT).until("mask")
    deals(exchange, spoilt(exchange, [name for name in exchange.plan.cohort if name != OFFENDER][:spoils]))
    assert len(exchange.finish()) == COUNT
    assert exchange.server.faults == {}


def test_a_dealer_of_useless_shares_that_falls_silent_is_proven_by_more_than_can_be_in_league(
    make_exchange: Make,
) -> None:
    exchange = make_exchange(COUNT).until("mask")
    deals(exchange, spoilt(exchange, (*LIARS, "c04")))
    assert lost(exchange, {"unmask": [OFFENDER]}) == {OFFENDER: Fault.USELESS_SHARES}


@pytest.mark.parametrize("few", [LIARS[:2], LIARS])
def test_with_fewer_complaints_it_is_suspected(make_exchange: Make, few: tuple[str, ...]) -> None:
    exchange = make_exchange(COUNT).until("mask")
    deals(exchange, spoilt(exchange, few))
    assert lost(exchange, {"unmask": [OFFENDER]}) == {OFFENDER: Fault.UNANSWERED}


def test_useless_shares_of_the_key_are_blamed_too(make_exchange: Make) -> None:
    """The dealer drops out before its masked input, and masks with it stay in the sum."""
    exchange = make_exchange(COUNT).until("share")
    deals(exchange, spoilt(exchange, (*LIARS, "c04")))
    assert lost(exchange, {"mask": [OFFENDER]}) == {OFFENDER: Fault.USELESS_SHARES}


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
        patch.setattr(shamir, "split", wrong_split)
        assert exchange.give(exchange.ask(OFFENDER)) is None
    absent = {"mask": [OFFENDER]} if lies_about == "key" else {}
    assert lost(exchange, absent) == {OFFENDER: Fault.WRONG_SHARES}


def wrong_split(secret: bytes, threshold: int, points: list[int], real: Any = shamir.split) -> dict[int, bytes]:
    shares: dict[int, bytes] = real(bytes(32), threshold, points)
    return shares


def test_a_share_that_does_not_lie_on_the_curve_is_proof_though_others_give_the_seed(make_exchange: Make) -> None:
    exchange = make_exchange(COUNT).until("mask")

    def bent(secret: bytes, threshold: int, points: list[int], real: Any = shamir.split) -> dict[int, bytes]:
        shares: dict[int, bytes] = real(secret, threshold, points)
        return shares | {points[0]: bytes(33)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shamir, "split", bent)
        assert exchange.give(exchange.ask(OFFENDER)) is None
    # Whether the first tries hit the bent share is chance that is fixed; all nine together always would.
    assert len(exchange.finish()) == COUNT
    assert set(exchange.server.faults) <= {OFFENDER}


@pytest.mark.parametrize("liars", [LIARS[:1], LIARS])
def test_false_complaints_about_a_dealer_who_is_there_change_nothing(
    make_exchange: Make, liars: tuple[str, ...]
) -> None:
    """And what the liars keep back after they complained is opened by the dealer."""
    exchange = make_exchange(COUNT).until("confirm")
    complain(exchange, liars, "c00")
    exchange.until("unmask")
    keep_back(exchange, liars, "c00")
    assert len(exchange.finish()) == COUNT
    assert exchange.server.faults == {}


def test_false_complaints_about_a_dealer_who_has_gone_prove_nothing(make_exchange: Make) -> None:
    """As many liars as may be in league can lose a round that an honest client has left; it is suspected for once."""
    exchange = make_exchange(COUNT).until("confirm")
    complain(exchange, LIARS, "c00")
    exchange.until("unmask")
    keep_back(exchange, LIARS, "c00")
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
    exchange = make_exchange(COUNT).until("confirm")
    with pytest.raises(Aborted, match="too few"):
        exchange.step(LIARS[:3])
    assert exchange.server.faults == dict.fromkeys(LIARS[:3], Fault.SILENT)
    for stage in ("advertise", "share", "mask"):
        exchange = make_exchange(COUNT).until(stage)
        with pytest.raises(Aborted, match="too few"):
            exchange.step(LIARS[:3])
        assert exchange.server.faults == dict.fromkeys(LIARS[:3], Fault.SILENT)


def test_one_that_never_comes_loses_few_rounds(make_exchange: Make, tmp_path: Path) -> None:
    """Of eight clients all must answer, so silence from the start is suspected too. Who abstains looks the same."""
    people, left_out, spoilt = people_of(9), LeftOut(tmp_path / "left_out.json"), 0
    for number in range(1, 33):
        drawn = tuple(name for name in people.names if name not in left_out.of(number, 1))[:8]
        if OFFENDER in drawn:
            spoilt += 1
            exchange = make_exchange(floor=8, people=people, number=number, cohort=drawn)
            with pytest.raises(Aborted, match="too few"):
                exchange.step([OFFENDER])
            left_out.after(number, exchange.server.faults, lost=True)
    assert spoilt == 5, "it sits out the next 1, 2, 4, ... rounds"
    assert left_out.for_good() == ()


@pytest.mark.parametrize("complaints", [(0,), (10,), (2, 2), (3, 2), (1, 2**63)])
def test_complaints_about_nobody_are_refused(make_exchange: Make, complaints: tuple[int, ...]) -> None:
    exchange = make_exchange(COUNT).until("confirm")
    frame = exchange.ask(OFFENDER)
    before = exchange.state()
    assert exchange.give(exchange.altered(frame, complaints=complaints)) == Code.MALFORMED
    assert exchange.state() == before
    assert exchange.give(frame) is None
    assert len(exchange.finish()) == COUNT


@pytest.mark.parametrize("count", [16, 30])
def test_liars_who_complain_of_everybody_cost_nobody_its_place(make_exchange: Make, count: int) -> None:
    """What all of them say still fits into the frames that honest clients read, which lists of names did not."""
    exchange = make_exchange(count).until("confirm")
    for liar in exchange.plan.cohort[-tolerated(count) :]:
        frame = exchange.ask(liar)
        assert exchange.give(exchange.altered(frame, complaints=tuple(range(1, count + 1)))) is None
    assert len(exchange.finish()) == count
    assert exchange.server.faults == {}


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
    lies = [
        replace(confirmed, complaints=(1,), survivors=bytes(32)),
        replace(confirmed, client="c08", complaints=(1,)),
    ]
    forged = exchange.signed(replace(confirmed, complaints=(1,)), exchange.people.keys["c06"])
    frames = (*request.confirmations, *(exchange.signed(lie) for lie in lies), forged)
    answer = exchange.ask("c00", exchange.signed(replace(request, confirmations=frames)))
    assert exchange.opened(answer).opened == ()


everybody = [f"c{number}" for number in range(COUNT)]


@settings(deadline=None)
@given(data=st.data())
def test_no_lie_proves_a_fault_of_an_honest_client(data: st.DataObject) -> None:
    """Liars, as many as may be in league, complain of whom they like and give what they like; honest clients answer or
    not. In these terms an honest holder gives what it has, and an honest dealer's shares are all of use."""
    liars = set(data.draw(st.lists(st.sampled_from(everybody), max_size=tolerated(COUNT), unique=True)))
    answered = set(data.draw(st.lists(st.sampled_from(everybody), unique=True)))
    some = st.sets(st.sampled_from(everybody))
    complaints: dict[str, set[str]] = {name: set() for name in everybody}
    secrets = []
    for owner in everybody:
        # A liar deals shares that are of no use to some, who say so; a dealer who is there opens what is complained of.
        useless = data.draw(some) if owner in liars else set()
        for holder in everybody:
            if data.draw(st.booleans()) if holder in liars else holder in useless:
                complaints[holder].add(owner)
        given = {holder for holder in answered - useless if holder not in liars or data.draw(st.booleans())}
        if owner in answered and owner not in liars:
            given |= {holder for holder in everybody if owner in complaints[holder]}
        secrets.append(Secret(owner, everybody, given, len(given) < 7))
    found = faults(secrets, answered, complaints, tolerated(COUNT))
    for name, fault in found.items():
        if name not in liars:
            assert fault not in PROVEN
            assert name not in answered
