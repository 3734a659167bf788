"""How long an update may be where no clip norm is set: as long as the optimiser can make it, and no longer."""

from collections.abc import Iterator
from math import cos, pi, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.config import parse_config
from fedtalk_ray.federation.secure_aggregator import clip_norm_of, make_codec
from fedtalk_ray.recipe import LARGEST_STATISTICS, Pace
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.training.optimise import Loss, descend


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
    # Round 1 is `units`.
    assert clip_norm_of(found, 4, 100) == pytest.approx(10 * third, rel=1e-5)
    assert clip_norm_of(found, 4, 400) == pytest.approx(20 * third, rel=1e-5)


def test_a_constant_rate_and_sgd() -> None:
    """Two steps of 0.001 reach 0.002 a value and a little more; sgd goes 2 * 0.001 * 3, as gradients are cut to 3."""
    constant = {"learning_rate": 1e-3, "steps": 2, "schedule": "constant"}
    assert clip_norm_of(config(local=constant), 25, 10_000) == pytest.approx(0.1 * (1 + RISING), rel=1e-5)
    assert clip_norm_of(config(local=constant | {"optimizer": "sgd", "clip_norm": 3.0}), 25, 10_000) == 0.006


def test_what_is_configured_stands_and_statistics_have_a_bound_of_their_own() -> None:
    found = config(privacy={"clip_norm": 7.0}, speech={"clip_norm": 3.0})
    assert [clip_norm_of(found, number, 100) for number in (1, 2, 22)] == [LARGEST_STATISTICS, 3.0, 7.0]
    assert clip_norm_of(config(speech={"steps": 1, "learning_rate": 0.5}), 11, 4) == pytest.approx(
        2 * Pace(0.5, 9, 20).rate(0), rel=1e-5
    )


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=5), min_size=1, max_size=12),
    st.sampled_from(["adamw", "sgd"]),
    st.integers(1, 6),
)
def test_no_honest_update_is_clipped(slopes: list[list[float]], optimizer: Any, number: int) -> None:
    """Whatever the gradients of a round are: both optimisers stay within the bound, so that nothing is cut off."""
    found = config(
        phases=["faces"],
        rounds=6,
        local={"steps": len(slopes), "learning_rate": 0.1, "optimizer": optimizer, "clip_norm": 0.5},
    )
    parameter = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))

    def losses() -> Iterator[Loss]:
        for slope in slopes:
            yield (parameter * torch.tensor(slope, dtype=torch.float64)).sum(), {"total": 0.0}

    pace = Pace.in_round(number, found.plan[0], 0.1, len(slopes))
    descend([parameter], losses(), len(slopes), pace.rate, optimizer=optimizer, clip_norm=0.5)
    bound = clip_norm_of(found, number, 5)
    assert np.linalg.norm(parameter.detach().numpy()) <= bound * (1 + 1e-5)


def test_a_rising_pull_reaches_it() -> None:
    """The bound is not looser than need be: what AdamW itself makes of gradients that rise by a ninth a step. Steady
    ones, which come to the learning rates alone, stay three hundredths below."""
    found = config(phases=["faces"], local={"steps": 20, "learning_rate": 0.01, "schedule": "constant"})
    reached = {}
    for rise in (10 / 9 * 0.999, 1.0):
        parameter = torch.nn.Parameter(torch.zeros(16, dtype=torch.float64))
        pulls = ((parameter.sum() * 0.01 * rise**step, {"total": 0.0}) for step in range(20))
        descend([parameter], pulls, 20, lambda _: 0.01, clip_norm=1e9)
        reached[rise] = parameter.detach().norm().item() / clip_norm_of(found, 1, 16)
    rising, steady = reached.values()
    assert rising == pytest.approx(1, rel=1e-3) and steady < 0.97


def test_one_liar_of_eight_moves_the_model_no_further_than_an_honest_client_could() -> None:
    """Seven stay where they are, one sends a million in every value: an eighth of the bound is what comes of it."""
    found, rng, dimension = config(phases=["faces"], rounds=10), np.random.default_rng(0), 1000
    bound, codec = clip_norm_of(found, 1, dimension), make_codec(found, dimension)
    total = np.zeros(codec.length, np.uint32)
    for update in [np.full(dimension, -1e6, np.float32)] + 7 * [np.zeros(dimension, np.float32)]:
        total += codec.encode(update, 0.01, bound, 8, rng)
    moved = codec.decode(total, 8, 8, bound).update
    assert np.linalg.norm(moved) == pytest.approx(bound / 8, rel=0.01)
    # 20 steps of at most 0.001 each: less than 0.02 a value, where the first round still warms up.
    assert bound < 0.02 * sqrt(dimension)
