"""The secure protocol under random networks and lying servers: no order of events opens a wrong sum or a vector.

`FEDTALK_CASES` sets how many cases each test tries.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from fedtalk_ray.messages import Unmasking
from fedtalk_ray.privacy.protocol import STAGES, Aborted, Code
from tests.unit.privacy.conftest import Exchange

Make = Callable[..., "Exchange"]

CASES = int(os.environ.get("FEDTALK_CASES", "30"))
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

NUMBERS = st.integers(0, 2**16)
"""Picks one of however many things there are, by its remainder."""

REFUSED = {
    Code.MALFORMED,
    Code.UNKNOWN_CLIENT,
    Code.BAD_SIGNATURE,
    Code.WRONG_STAGE,
    Code.DUPLICATE,
    Code.NOT_IN_ROUND,
    None,
}
"""What a server says to frames that honest clients made, wherever and however often they come, and to damaged ones."""


def network(make_exchange: Make, opened: Counter[str]) -> type[RuleBasedStateMachine]:
    """opened: counts how often a sum was open and right, and how often there was none to be had."""

    class Network(RuleBasedStateMachine):
        @initialize(count=st.integers(4, 6))
        def begin(self, count: int) -> None:
            self.exchange = make_exchange(count)
            self.names = self.exchange.plan.cohort
            self.up: list[bytes] = []
            self.down: list[bytes] = [b""]
            self.masked: set[str] = set()

        def ask(self, name: str, frame: bytes, stage: str) -> bytes | None:
            """A second answer to a stage fails in `Exchange.ask`."""
            answer = self.exchange.try_ask(name, frame, stage)
            if answer is not None:
                self.up.append(answer)
            return answer

        def give(self, frame: bytes) -> Code | None:
            stage, before = self.exchange.server.stage, self.exchange.state()
            code = self.exchange.give(frame)
            assert code in REFUSED
            assert (self.exchange.state() == before) == (code is not None)
            if code is None and stage == "mask":
                self.masked.add(self.exchange.opened(frame).client)
            return code

        def honest(self, name: str) -> None:
            """What should happen: the client's answer to what it was sent, at once to the server."""
            if name in self.exchange.inbox and self.exchange.server.stage in STAGES:
                answer = self.ask(name, self.exchange.inbox[name], self.exchange.server.stage)
                if answer is not None:
                    assert self.give(answer) is None

        @rule(order=st.permutations(range(6)), late=st.integers(0, 40))
        def whole_stage(self, order: list[int], late: int) -> None:
            """Everybody in any order, but for one whose answer may come after the stage was closed."""
            if self.exchange.server.stage not in STAGES:
                return
            for place in order:
                if place < len(self.names) and place != late:
                    self.honest(self.names[place])
            held = None
            if late < len(self.names) and self.names[late] in self.exchange.inbox:
                name = self.names[late]
                held = self.ask(name, self.exchange.inbox[name], self.exchange.server.stage)
            self.exchange.inbox = {}
            with contextlib.suppress(Aborted):
                self.exchange.close()
            self.down += self.exchange.inbox.values()
            if held is not None:
                assert self.give(held) == Code.WRONG_STAGE

        @rule(order=st.permutations(range(6)))
        def another_whole_stage(self, order: list[int]) -> None:
            self.whole_stage(order, 6)

        @rule(order=st.permutations(range(6)))
        def a_third_whole_stage(self, order: list[int]) -> None:
            self.whole_stage(order, 6)

        @rule(who=NUMBERS)
        def one_answer(self, who: int) -> None:
            self.honest(self.names[who % len(self.names)])

        @rule(which=NUMBERS)
        def frame_of_anybody_comes_again(self, which: int) -> None:
            if self.up:
                self.give(self.up[which % len(self.up)])

        @rule(which=NUMBERS, bit=NUMBERS)
        def frame_of_anybody_with_a_bit_flipped(self, which: int, bit: int) -> None:
            if self.up:
                frame = self.up[which % len(self.up)]
                assert self.give(self.exchange.flipped(frame, bit % (8 * len(frame)))) is not None

        @rule(who=NUMBERS, bit=NUMBERS)
        def question_with_a_bit_flipped(self, who: int, bit: int) -> None:
            name = self.names[who % 2]
            frame = self.exchange.inbox.get(name)
            if frame and self.exchange.server.stage in STAGES:
                damaged = self.exchange.flipped(frame, bit % (8 * len(frame)))
                assert self.ask(name, damaged, self.exchange.server.stage) is None
                self.exchange.check_silent(name)

        @rule(who=NUMBERS, stage=st.sampled_from(STAGES), which=NUMBERS)
        def question_of_any_time_to_anybody(self, who: int, stage: str, which: int) -> None:
            self.ask(self.names[who % 2], self.down[which % len(self.down)], stage)

        @invariant()
        def the_sum_is_right_or_closed(self) -> None:
            server = self.exchange.server
            if server.stage == "open":
                assert set(server.survivors) == self.masked
                assert len(self.masked) >= max(2 * len(self.names) // 3 + 1, 3)
                self.exchange.check_sum()
                opened["right"] += 1
            else:
                with pytest.raises(Aborted):
                    server.total()
                opened["closed"] += 1

        @invariant()
        def nobody_gave_away_both_shares_of_an_owner(self) -> None:
            for (stage, _), frame in self.exchange.sent.items():
                if stage == "unmask":
                    message = self.exchange.opened(frame)
                    seeds, keys = owners(message)
                    assert not seeds & keys
                    assert seeds <= set(self.exchange.server.survivors)

    return Network


def owners(message: Unmasking) -> tuple[set[str], set[str]]:
    return {share.owner for share in message.self_mask_shares}, {share.owner for share in message.masking_key_shares}


def test_no_network_makes_a_wrong_sum(make_exchange: Make) -> None:
    opened: Counter[str] = Counter()
    machine = network(make_exchange, opened)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=CASES, stateful_step_count=25, deadline=None, suppress_health_check=SLOW, print_blob=True
        ),
    )
    assert opened["right"] > 0 and opened["closed"] > 0
