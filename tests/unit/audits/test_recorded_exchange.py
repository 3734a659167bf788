"""A whole exchange in one process: whose sum is opened, what is recorded, what is charged, what is drawn afresh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtalk_ray.audits.attack import Round
from fedtalk_ray.audits.recorded_exchange import run_exchange, run_twice
from fedtalk_ray.privacy.protocol import STAGES

Make = Callable[..., Round]


def weighted_mean(audited: Round, names: tuple[str, ...]) -> np.ndarray:
    return np.average([audited.updates[name] for name in names], axis=0, weights=[audited.weights[n] for n in names])


def test_an_exchange_opens_the_mean_of_those_who_stayed(make_round: Make) -> None:
    audited = make_round()
    exchange = run_exchange(audited, absent={"mask": {"s3"}})
    assert exchange.survivors == tuple(sorted(audited.updates.keys() - {"s3"})) and exchange.moved
    assert exchange.update is not None and exchange.aborted is None and not exchange.refused and not exchange.charges
    assert np.abs(exchange.update - weighted_mean(audited, exchange.survivors)).max() < 1e-6
    # The client that left is no small part of what it left.
    assert np.abs(exchange.update - weighted_mean(audited, tuple(audited.updates))).max() > 1e-3
    assert {stage: len(frames) for stage, frames in exchange.frames.items()} == dict(
        zip(STAGES, (9, 9, 8, 8, 8), strict=True)
    )
    assert [method for method, _ in exchange.calls] == ["begin", *["collect"] * 5, "finish"]
    assert not Path(exchange.config.run).exists(), "an exchange leaves nothing on disk"


@pytest.mark.parametrize(("stage", "code"), [("share", "too few"), ("mask", "too few"), ("confirm", "too few")])
def test_too_few_leave_the_model_as_it_was(make_round: Make, skellam: dict[str, Any], stage: str, code: str) -> None:
    """And each costs: that the model stands still tells who was there."""
    exchange = run_exchange(make_round(**skellam), absent={stage: {"s0", "s1"}})
    assert exchange.aborted == code and exchange.update is None and not exchange.moved
    assert len(exchange.charges) == 1
    assert list(exchange.frames)[-1] == stage and len(exchange.frames[stage]) == 7


def test_two_exchanges_agree_in_all_that_is_public(make_round: Make) -> None:
    one, two = run_twice(make_round())
    assert one.plan == two.plan and one.plan.exchange == 1
    assert one.calls[0] == two.calls[0]
    assert all(set(one.frames[stage]).isdisjoint(two.frames[stage]) for stage in STAGES), "nothing is drawn afresh"
    assert one.update is not None and two.update is not None
    assert np.abs(one.update - two.update).max() < 1e-6


def test_the_noise_is_the_runs_and_its_budget_is_out_of_play(make_round: Make, skellam: dict[str, Any]) -> None:
    """The run has a budget that one round without amplification would overspend."""
    audited = make_round(privacy=skellam["privacy"] | {"epsilon": 0.1})
    exchange = run_exchange(audited)
    assert exchange.config.privacy.epsilon is None
    assert exchange.update is not None and exchange.charges[0].noise.multiplier == 1.0
    # Seven of nine must stay at least, but production wants eight, one of whom may know its own part
    # (`privacy.colluders`): the noise of nine is 9/7 of what is needed.
    noise = exchange.update * 9 - sum(audited.weights[n] * audited.updates[n] for n in audited.updates)
    assert noise.std() == pytest.approx((9 / 7) ** 0.5, rel=0.07)


def test_a_configuration_whose_noise_is_not_settled_is_refused(make_round: Make) -> None:
    audited = make_round(privacy={"mechanism": "skellam", "epsilon": 8.0, "clip_norm": 1.0})
    with pytest.raises(ValueError, match="not settled"):
        run_exchange(audited)


def test_a_client_that_refuses_is_counted_and_left_out(make_round: Make) -> None:
    audited = make_round()
    updates = audited.updates | {"s4": np.full_like(audited.shared, np.nan)}
    exchange = run_exchange(replace(audited, updates=updates))
    assert exchange.refused == {"not finite": 1} and "s4" not in exchange.survivors
    assert exchange.update is not None and np.isfinite(exchange.update).all()


def test_what_clients_agreed_to_over_all_runs_pays_for_no_audit(make_round: Make, tmp_path: Path) -> None:
    ledgers = tmp_path / "ledgers"
    exchange = run_exchange(make_round(agreement={"ledgers": str(ledgers), "rounds": 1}))
    assert exchange.update is not None and not ledgers.exists()
