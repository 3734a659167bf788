"""What a bad message gets at the server: malformed, forged, replayed, late, or damaged within."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedtalk_ray.messages import SealedShare, Share
from fedtalk_ray.privacy import secure_client, shamir
from fedtalk_ray.privacy.protocol import STAGES, Code
from tests.unit.privacy.conftest import Exchange, aborts
from tests.unit.privacy.tampering import (
    CASES,
    CORRUPT_SHARES,
    OFFENDER,
    OTHER,
    Make,
    Tamper,
    changed,
    check_unopened,
    flipped,
    otherwise,
    survivors_without,
)


@pytest.mark.parametrize("then", ["silence", "a good message"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_bad_message_is_refused_and_the_others_end_the_round(exchange: Exchange, stage: str, then: str) -> None:
    exchange.until(stage)
    for name in ("c00", "c02"):
        assert exchange.give(exchange.ask(name)) is None
    good = exchange.ask(OFFENDER)
    before = exchange.state()
    for what, tamper, code in CASES[stage]:
        assert exchange.give(tamper(exchange, OFFENDER, good)) == code, what
        assert exchange.state() == before, what
    for frame in (np.zeros((4, 4), np.uint8)[:, ::2], "text", None, np.zeros(1, "datetime64[s]")):
        assert exchange.give(frame) == Code.MALFORMED
    if then == "silence":
        exchange.step([OFFENDER])
        assert set(exchange.finish()) == survivors_without(stage)
    else:
        assert exchange.give(good) is None
        exchange.step()
        assert len(exchange.finish()) == 5


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_of_another_exchange_or_comes_twice_or_late_is_refused(
    exchange: Exchange, earlier: Exchange, stage: str
) -> None:
    def refused(code: Code, *frames: bytes) -> None:
        before = exchange.state()
        for frame in frames:
            assert exchange.give(frame) == code
            assert exchange.state() == before

    exchange.until(stage)
    refused(Code.BAD_SIGNATURE, *(earlier.sent[stage, name] for name in exchange.plan.cohort))
    good, late = exchange.ask("c00"), exchange.ask(OFFENDER)
    assert exchange.give(good) is None
    refused(Code.DUPLICATE, good, otherwise(exchange, "c00", good), good)
    exchange.step([OFFENDER])
    while exchange.server.stage in STAGES:
        refused(Code.WRONG_STAGE, late)
        exchange.step()
    refused(Code.WRONG_STAGE, late)
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


@pytest.mark.parametrize("tamper", CORRUPT_SHARES.values(), ids=CORRUPT_SHARES)
def test_damaged_shares_are_left_out_and_the_others_open_the_sum(make_exchange: Make, tamper: Tamper) -> None:
    """Seven clients, t = 5, one dropout: of the six who answer one may hand out rubbish, and two may not."""
    exchange = make_exchange(7).until("unmask", {"mask": ["c06"]})
    assert exchange.give(tamper(exchange, OFFENDER, exchange.ask(OFFENDER))) is None
    assert len(exchange.finish()) == 6
    exchange = make_exchange(7).until("unmask", {"mask": ["c06"]})
    for name in (OFFENDER, OTHER):
        assert exchange.give(tamper(exchange, name, exchange.ask(name))) is None
    with aborts(Code.CANNOT_UNMASK):
        exchange.step()
    check_unopened(exchange)


def test_one_damaged_share_is_left_out_alone_and_a_copy_pushes_out_no_good_one(make_exchange: Make) -> None:
    """t = 4 of 5, and two clients spoil one share each: were anything else of theirs thrown away, t would be missed."""
    exchange = make_exchange(5).until("unmask")
    for name, owner in ((OFFENDER, "c00"), (OTHER, "c02")):
        good = exchange.opened(exchange.ask(name)).self_mask_shares
        spoilt = tuple(replace(share, value=bytes(33)) if share.owner == owner else share for share in good)
        assert len(good) == 5 and spoilt != good
        assert exchange.give(exchange.altered(exchange.sent["unmask", name], self_mask_shares=spoilt)) is None
    assert len(exchange.finish()) == 5
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
    "a ciphertext of zeros": lambda share: replace(share, ciphertext=bytes(len(share.ciphertext))),
    "a wrong commitment to a share": lambda share: replace(share, commitment=bytes(32)),
}


@pytest.mark.parametrize("stage", ["share", "mask"])
@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_dealer_may_damage_what_it_deals_to_a_few(
    make_exchange: Make, change: Callable[[SealedShare], SealedShare], stage: str
) -> None:
    """Seven clients, t = 5, and the dealer falls silent: of the six shares of its key, or seed, one may be spoilt."""
    absent = {"mask": [OFFENDER]} if stage == "share" else {"unmask": [OFFENDER]}
    exchange = make_exchange(7).until(stage)
    assert exchange.give(dealt_with(1, change)(exchange, OFFENDER, exchange.ask(OFFENDER))) is None
    assert len(exchange.finish(absent)) == (6 if stage == "share" else 7)
    exchange = make_exchange(7).until(stage)
    assert exchange.give(dealt_with(2, change)(exchange, OFFENDER, exchange.ask(OFFENDER))) is None
    with aborts(Code.CANNOT_UNMASK):
        exchange.until("open", absent)
    check_unopened(exchange)


@pytest.mark.parametrize("stage", ["share", "mask"])
@pytest.mark.parametrize(("count", "spoilt"), [(7, 7), (14, 1)])
def test_one_wrong_share_that_its_dealer_vouches_for_is_left_out(
    make_exchange: Make, monkeypatch: pytest.MonkeyPatch, count: int, spoilt: int, stage: str
) -> None:
    """The dealer commits to what it deals, rubbish to one holder; the others have more than t = 5 of 7 or 10 of 14."""
    exchange = make_exchange(count).until(stage)
    split = shamir.split

    def spoil(*arguments: Any) -> dict[int, bytes]:
        return {point: bytes(33) if point == spoilt else share for point, share in split(*arguments).items()}

    with monkeypatch.context() as patch:
        patch.setattr(secure_client.shamir, "split", spoil)
        assert exchange.give(exchange.ask(OFFENDER)) is None
    absent = {"mask": [OFFENDER]} if stage == "share" else {}
    assert len(exchange.finish(absent)) == count - len(absent)


def test_shares_that_nobody_should_have_given_are_not_used(make_exchange: Make) -> None:
    """A client that gives out both kinds of everything: the server keeps self masks of survivors, keys of dropouts."""
    exchange = make_exchange(7).until("unmask", {"mask": ["c06"]})
    client = exchange.clients[OFFENDER]
    keys = tuple(Share(owner, share) for owner, share in client._held_keys.items())
    assert len(keys) == 6
    answer = exchange.ask(OFFENDER)
    assert exchange.give(exchange.altered(answer, masking_key_shares=keys)) is None
    assert set(exchange.server._seed_shares) == set(exchange.plan.cohort) - {"c06"}
    assert set(exchange.server._key_shares) == {"c06"}
    assert len(exchange.finish()) == 6
