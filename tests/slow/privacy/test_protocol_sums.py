"""The protocol's sums: exact, whoever drops out and when, and never of too few."""

from __future__ import annotations

from itertools import chain

import pytest

from fedtalk_ray.privacy.protocol import Aborted, Code, Limits
from tests.unit.privacy.conftest import aborts
from tests.unit.privacy.tampering import Make, check_unopened, subsets

# Sums, whoever drops out. m_min by hand: max(2n/3 + 1 rounded down, 3).


@pytest.mark.parametrize(("count", "floor", "needed"), [(4, 3, 3), (5, 3, 4), (6, 3, 5)])
def test_the_sum_is_exact_for_every_set_of_dropouts_that_leaves_enough(
    make_exchange: Make, count: int, floor: int, needed: int
) -> None:
    names = make_exchange(count, floor=floor).plan.cohort
    for absent in chain.from_iterable(subsets(names, size) for size in range(count - needed + 1)):
        survivors = make_exchange(count, floor=floor).finish({"mask": absent})
        assert set(survivors) == set(names) - set(absent)
    for absent in subsets(names, count - needed + 1):
        exchange = make_exchange(count, floor=floor).until("mask")
        with aborts(Code.TOO_FEW):
            exchange.step(absent)
        check_unopened(exchange)


@pytest.mark.parametrize("stage", ["advertise", "share", "confirm", "unmask"])
def test_the_sum_is_exact_when_anybody_drops_out_at_another_stage(make_exchange: Make, stage: str) -> None:
    """Five clients, of whom four must stay. Who leaves after the masked inputs is in the sum all the same."""
    names = make_exchange().plan.cohort
    for absent in subsets(names, 1):
        survivors = make_exchange().finish({stage: absent})
        assert set(survivors) == (set(names) if stage in ("confirm", "unmask") else set(names) - set(absent))
    for absent in subsets(names, 2):
        exchange = make_exchange().until(stage)
        with aborts(Code.CANNOT_UNMASK if stage == "unmask" else Code.TOO_FEW):
            exchange.step(absent)
        check_unopened(exchange)


def test_a_sparse_graph_of_which_some_drop_out_everywhere(make_exchange: Make) -> None:
    exchange = make_exchange(104, floor=8).until("mask", {"advertise": ["c03", "c77"], "share": ["c09"]})
    drawn = {name: set(shares) - {name} for name, shares in exchange.server._dealt_keys.items()}
    assert {len(each) for each in drawn.values()} <= {30, 31, 32}, "who did not advertise holds no share"
    partners = exchange.server._partners
    for one in drawn:
        assert partners[one] == {other for other in drawn if other in drawn[one] or one in drawn[other]}
    assert len(exchange.finish({"mask": ["c13", "c23", "c33"], "unmask": ["c43"]})) == 98


def test_production_opens_no_sum_of_fewer_than_eight(make_exchange: Make) -> None:
    assert Limits() == Limits(8)
    exchange = make_exchange(9, floor=Limits().floor).until("mask")
    with pytest.raises(Aborted, match="too few: 7 clients after mask, 8 are needed"):
        exchange.step(["c00", "c01"])
    assert len(make_exchange(9, floor=8).finish({"mask": ["c00"]})) == 8
