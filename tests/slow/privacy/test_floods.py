"""Floods: whatever is sent too often, too long or too deep costs its receiver little, and is refused in one word."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedtalk_ray.messages import Advertised, Consistency, Delivered, Plan, SealedFrom, Survivors, UnmaskRequest
from fedtalk_ray.privacy import protocol, wire
from fedtalk_ray.privacy.protocol import STAGES, Aborted, Code, Frame
from fedtalk_ray.privacy.secure_client import open_plan
from tests.unit.privacy.conftest import Exchange, exchange_of, people_of
from tests.unit.privacy.several_exchanges import Act, League

COUNT = 8
LARGEST = 1024 * (COUNT + 2)
"""Bytes of the longest frame for a cohort of eight, by hand."""

LARGEST_OF_ALL = LARGEST + 8 * COUNT**2
"""Of what everybody says of everybody, which the last frame alone holds."""

VICTIM, TIMES = "c00", 300

KEPT = 40_000
"""Bytes that a flood may leave behind: a hundred and thirty for each of so many times."""

pytestmark = pytest.mark.alone  # The whole process is looked at: threads that other tests left behind would count too.


@contextmanager
def little(kilobytes: float, seconds: float = 10.0) -> Iterator[None]:
    """What is allocated at any time in here, and the processor's time, are no more than that; hardly any is kept."""
    gc.collect()
    tracemalloc.start()
    tracemalloc.reset_peak()
    begin, before = time.process_time(), tracemalloc.get_traced_memory()[0]
    try:
        yield
        took = time.process_time() - begin
        peak = tracemalloc.get_traced_memory()[1] - before
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert peak < 1000 * kilobytes, f"{peak} bytes"
    assert kept < KEPT, f"{kept} bytes are kept"
    assert took < seconds, f"{took} s"


def cohort(**planned: Any) -> Exchange:
    return exchange_of(COUNT, floor=COUNT, **planned)


def code_of(call: Callable[[], object]) -> Code:
    with pytest.raises(Aborted) as caught:
        call()
    return caught.value.code


# The same thing hundreds of times.


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_is_asked_again_and_again_answers_once(stage: str) -> None:
    exchange = cohort().until(stage)
    frame = exchange.inbox[VICTIM]
    exchange.ask(VICTIM)
    with little(500):
        for _ in range(TIMES):
            assert exchange.refusal(VICTIM, frame, stage) == Code.WRONG_STAGE


@pytest.mark.parametrize("stage", STAGES)
def test_a_server_that_is_told_again_and_again_takes_it_once(stage: str) -> None:
    exchange = cohort().until(stage)
    answer = exchange.ask(VICTIM)
    assert exchange.give(answer) is None
    before = exchange.state()
    with little(1000):
        for _ in range(TIMES):
            assert exchange.give(answer) == Code.DUPLICATE
    assert exchange.state() == before


def test_a_slot_that_is_asked_again_and_again_refuses_once_and_is_silent(tmp_path: Path) -> None:
    """A client that has refused is none of the exchange any more, and no list of refusals grows."""
    league = League(people_of(COUNT), frozenset(), tmp_path / "run")
    next(stages := league._stages(Act(2, 1)))
    slot = league._slot(Act(2, 1))
    ask = lambda: slot.call("answer", "advertise", {VICTIM: b""})[0]  # noqa: E731
    assert ask().clients == (VICTIM,)
    assert ask().refused == {str(Code.OLD_ROUND): 1}
    with little(500):
        for _ in range(TIMES):
            answers = ask()
            assert not answers.clients and not answers.refused
    stages.close()


def test_of_a_hundred_plans_a_slot_keeps_the_last(tmp_path: Path) -> None:
    """Each makes keys for seven clients, who are given up with the next; none is answered, so none is written down."""
    league = League(people_of(COUNT), frozenset(), tmp_path / "run")
    slot = league._slot(Act(2, 1))

    def plan(number: int) -> None:
        next(league._stages(Act(2, number, left_out=frozenset({number % COUNT}))))
        league.began.clear()

    # Traced from here on: else what the last plan holds would count, and what the one before held would not.
    tracemalloc.start()
    for number in range(1, 5):
        plan(number)
    with little(1000):
        for number in range(5, 105):
            plan(number)
    secure = slot._held.secure
    assert secure._plan.exchange == 104
    assert secure._sides.keys() == secure._updates.keys() == set(league.people.names[1:]), "without 104 % 8"


# Too long.


def long_frame(exchange: Exchange, stage: str, times: int) -> bytes:
    """A frame of that stage, rightly signed, with so many of what it lists."""
    message = {
        "share": lambda: Advertised((b"",) * times),
        "mask": lambda: Delivered(("a",) * times, ()),
        "confirm": lambda: Survivors(("a",) * times, ()),
        "unmask": lambda: UnmaskRequest((b"",) * times),
    }[stage]
    return exchange.signed(message())


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_client_refuses_what_is_too_long_before_it_reads_it(stage: str) -> None:
    exchange = cohort().until(stage)
    frame = long_frame(exchange, stage, 100_000)
    with little(20):
        assert exchange.abort_of(VICTIM, frame) == Code.WRONG_LENGTH


def test_a_client_refuses_a_plan_that_is_too_long_before_it_reads_it() -> None:
    exchange = cohort()
    plan = Plan("run", 1, 1, bytes(32), bytes(32), bytes(32), 1.0, ("a",) * 100_000)
    frame = exchange.signed(plan, context=protocol.run_context("run"))
    with little(20):
        assert code_of(lambda: open_plan(frame, exchange.people.roster, "run")) == Code.WRONG_LENGTH


@pytest.mark.parametrize("stage", STAGES)
def test_a_server_refuses_what_is_too_long_before_it_reads_it(stage: str) -> None:
    exchange = cohort().until(stage)
    frame = exchange.signed(Consistency(VICTIM, bytes(32), (1,) * 100_000))
    before = exchange.state()
    with little(20):
        assert exchange.give(frame) == Code.WRONG_LENGTH
    assert exchange.state() == before


# As long as may be.


def copies(exchange: Exchange, stage: str) -> Any:
    """A message of that stage that says the same thing as often as fits."""
    sent = exchange.sent
    shares = exchange.opened(exchange.inbox[VICTIM]).shares if stage == "mask" else ()
    if stage == "share":
        one = sent["advertise", "c01"]
        return Advertised((sent["advertise", VICTIM], *[one] * ((LARGEST - 600) // (len(one) + 4))))
    if stage == "mask":
        return Delivered(tuple(exchange.plan.cohort[1:]), shares[:1] * ((LARGEST - 400) // 100))
    if stage == "confirm":
        return Survivors(exchange.plan.cohort * ((LARGEST - 200) // (7 * COUNT)), ())
    one = sent["confirm", "c01"]
    return UnmaskRequest((one,) * ((LARGEST - 200) // (len(one) + 4)))


REFUSED: dict[str, tuple[str, Callable[[Exchange], Any], Code]] = {
    "thousands of advertisements": ("share", lambda _: Advertised((b"",) * 2500), Code.MALFORMED),
    "one advertisement many times": ("share", lambda each: copies(each, "share"), Code.BAD_KEYS),
    "thousands of partners": ("mask", lambda _: Delivered(("a",) * 2000, ()), Code.WRONG_SHARES),
    "hundreds of empty shares": (
        "mask",
        lambda _: Delivered((), (SealedFrom("a", b"", b""),) * 700),
        Code.WRONG_SHARES,
    ),
    "thousands of survivors": ("confirm", lambda _: Survivors(("a",) * 2000, ()), Code.INCONSISTENT),
    "the survivors many times": ("confirm", lambda each: copies(each, "confirm"), Code.INCONSISTENT),
    "thousands of confirmations": ("unmask", lambda _: UnmaskRequest((b"",) * 2500), Code.TOO_FEW),
    "one confirmation many times": ("unmask", lambda each: copies(each, "unmask"), Code.TOO_FEW),
}


@pytest.mark.parametrize(("stage", "message", "code"), REFUSED.values(), ids=REFUSED)
def test_a_client_refuses_a_frame_that_is_full_of_nothing(
    stage: str, message: Callable[[Exchange], Any], code: Code
) -> None:
    exchange = cohort().until(stage)
    frame = exchange.signed(message(exchange))
    assert LARGEST // 2 < len(frame) <= LARGEST
    with little(40 * LARGEST / 1000):
        assert exchange.abort_of(VICTIM, frame) == code


def test_a_share_that_is_sent_many_times_is_kept_once() -> None:
    exchange = cohort().until("mask")
    frame = exchange.signed(copies(exchange, "mask"))
    assert LARGEST // 2 < len(frame) <= LARGEST
    with little(40 * LARGEST / 1000):
        exchange.ask(VICTIM, frame)
    assert set(exchange.clients[VICTIM]._held_keys) == {"c01"}


# Complaints.


def test_a_server_refuses_thousands_of_complaints() -> None:
    exchange = cohort().until("confirm")
    right = exchange.opened(exchange.ask(VICTIM))
    before = exchange.state()
    for places in ((1,) * 1200, tuple(range(1, 1201)), (2**64 - 1,) * 1200):
        frame = exchange.altered(exchange.sent["confirm", VICTIM], complaints=places)
        with little(40 * LARGEST / 1000):
            assert exchange.give(frame) == Code.MALFORMED
    assert exchange.state() == before and not right.complaints


def test_of_thousands_of_complaints_a_client_answers_one_for_each_holder() -> None:
    """They are signed by a client in league, and no server has looked at them."""
    exchange = cohort().until("confirm")
    exchange.step()
    confirmed = [exchange.sent["confirm", name] for name in exchange.plan.cohort]
    confirmed[1] = exchange.altered(confirmed[1], complaints=(1,) * 900)
    frame = exchange.signed(UnmaskRequest(tuple(confirmed)))
    assert LARGEST // 2 < len(frame) <= LARGEST
    with little(40 * LARGEST / 1000):
        answer = exchange.opened(exchange.ask(VICTIM, frame))
    assert [each.holder for each in answer.opened] == ["c01"]


# Too deep.


def nested(exchange: Exchange, stage: str, depth: int) -> bytes:
    """A frame in a frame, each signed by the server, and the innermost empty."""
    kind = {"share": Advertised, "mask": Delivered, "confirm": Survivors, "unmask": UnmaskRequest}[stage]
    frame = b""
    for _ in range(depth):
        body = wire.encode(kind((frame,))) if kind in (Advertised, UnmaskRequest) else frame
        frame = wire.encode(Frame(kind.__name__, body, bytes(64)))
    inner = wire.decode(Frame, frame)
    return wire.encode(
        Frame(inner.kind, inner.body, exchange.people.server.sign(exchange.context, inner.kind, inner.body))
    )


@pytest.mark.parametrize("stage", STAGES[1:])
@pytest.mark.parametrize("depth", [90, 5000])
def test_a_client_does_not_follow_frames_into_frames(stage: str, depth: int) -> None:
    exchange = cohort().until(stage)
    frame = nested(exchange, stage, depth)
    deep = {"share": Code.WRONG_STAGE, "unmask": Code.TOO_FEW}.get(stage, Code.MALFORMED)
    with little(10 * LARGEST / 1000):
        assert exchange.abort_of(VICTIM, frame) == (deep if depth == 90 else Code.WRONG_LENGTH)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_frame_that_fits_by_a_byte_is_read_and_one_more_is_not(stage: str) -> None:
    largest = LARGEST_OF_ALL if stage == "unmask" else LARGEST
    for more, code in ((0, Code.MALFORMED), (1, Code.WRONG_LENGTH)):
        assert cohort().until(stage).abort_of(VICTIM, bytes(largest + more)) == code
