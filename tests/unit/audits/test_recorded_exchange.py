"""A whole exchange in one process: whose sum is opened, what is recorded, what is charged, what is drawn afresh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtalk_ray.audits.attack import Round
from fedtalk_ray.audits.recorded_exchange import run_exchange
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
