"""How long an update may be where no clip norm is set: as long as the optimiser can make it, and no longer."""

from math import cos, pi
from typing import Any

import pytest

from fedtalk_ray.config import parse_config
from fedtalk_ray.federation.secure_aggregator import clip_norm_of
from fedtalk_ray.recipe import LARGEST_STATISTICS, Pace
from fedtalk_ray.settings import TrainConfig


def config(**more: Any) -> TrainConfig:
    tree = {"run": "r", "shards": "s", "pretrained": "p", "phases": ["units", "speech", "faces"]}
    return parse_config(tree | more, "test")


RISING = 1.00136986
"""What AdamW's second step may be, in learning rates: gradients 1 and 10 / 9 have the mean (0.09 + 0.1 * 10 / 9) / 0.19
= 1.0585, and the mean square (0.000999 + 0.001 * 100 / 81) / 0.001999 = 1.1174, whose root is 1.0571."""


def test_it_is_the_rounds_learning_rates_times_the_root_of_the_number_of_values() -> None:
    """Four rounds of two steps at 0.5 with a cosine over all eight: steps 3 and 4 have 0.5 * (1 + cos(pi * s / 8)) / 2;
    nothing warms up in a phase of fewer than 20."""
    found = config(phases=["units", "faces"], rounds=4, local={"steps": 2, "learning_rate": 0.5})
    third = 0.25 * (1 + cos(pi * 4 / 8)) + RISING * 0.25 * (1 + cos(pi * 5 / 8))
    assert clip_norm_of(found, 4, 100) == pytest.approx(10 * third, rel=1e-5)
    assert clip_norm_of(found, 4, 400) == pytest.approx(20 * third, rel=1e-5)


def test_what_is_configured_stands_and_statistics_have_a_bound_of_their_own() -> None:
    found = config(privacy={"clip_norm": 7.0}, speech={"clip_norm": 3.0})
    assert [clip_norm_of(found, number, 100) for number in (1, 2, 22)] == [LARGEST_STATISTICS, 3.0, 7.0]
    assert clip_norm_of(config(speech={"steps": 1, "learning_rate": 0.5}), 11, 4) == pytest.approx(
        2 * Pace(0.5, 9, 20).rate(0), rel=1e-5
    )


def test_a_constant_rate_and_sgd() -> None:
    """Two steps of 0.001 reach 0.002 a value and a little more; sgd goes 2 * 0.001 * 3, as gradients are cut to 3."""
    constant = {"learning_rate": 1e-3, "steps": 2, "schedule": "constant"}
    assert clip_norm_of(config(local=constant), 25, 10_000) == pytest.approx(0.1 * (1 + RISING), rel=1e-5)
    assert clip_norm_of(config(local=constant | {"optimizer": "sgd", "clip_norm": 3.0}), 25, 10_000) == 0.006
