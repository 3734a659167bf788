"""How the learning rate goes over a phase, and a client's steps in one round, worked out by hand."""

from collections.abc import Iterator
from math import cos, pi

import numpy as np
import pytest
import torch

from fedtalk_ray.recipe import Pace
from fedtalk_ray.training.optimise import Loss, descend


def test_the_rate_warms_up_over_a_twentieth_and_falls_with_a_cosine() -> None:
    """Of 100 steps the first five climb in fifths; half-way the cosine is at a half, and after the last at nothing."""
    pace = Pace(2.0, total=100)
    for step in range(5):
        assert pace.rate(step) == pytest.approx(2 * (step + 1) / 5 * (1 + cos(pi * step / 100)) / 2)
    assert pace.rate(50) == pytest.approx(1.0)
    rates = [pace.rate(step) for step in range(4, 101)]
    assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(0, abs=1e-12)


def test_the_rate_is_constant_without_a_total() -> None:
    """And a phase shorter than a warm-up begins at its highest."""
    assert [Pace(0.3, before).rate(step) for before in (0, 40) for step in (0, 7)] == [0.3] * 4
    assert Pace(1.0, total=3).rate(0) == 1.0


def test_rounds_of_one_phase_join_without_a_seam(make_task) -> None:
    """Step s of round r has the rate of step r * steps + s of one long round."""
    rounds, steps = 6, 15
    long = make_task([], np.zeros(0), 1, 1).pace(0.7, rounds * steps)
    for index in range(rounds):
        pace = make_task([], np.zeros(0), index + 1, rounds).pace(0.7, steps)
        assert [pace.rate(s) for s in range(steps)] == [long.rate(index * steps + s) for s in range(steps)]


def pull(parameter: torch.nn.Parameter, *slopes: tuple[float, float]) -> Iterator[Loss]:
    """Losses with these gradients, one after another."""
    for slope in slopes:
        loss = (parameter * torch.tensor(slope)).sum()
        yield loss, {"total": slope[0]}


def test_a_step_takes_its_rate_and_a_gradient_of_at_most_the_clip_norm() -> None:
    """Gradient (30, 40) has norm 50 and becomes (0.6, 0.8), (0.3, 0.4) stays: 0.5 * 0.6 + 0.25 * 0.3 = 0.375."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    rates = [0.5, 0.25]
    terms = descend([parameter], pull(parameter, (30, 40), (0.3, 0.4)), 2, rates.__getitem__, optimizer="sgd")
    assert parameter.tolist() == pytest.approx([-0.375, -0.5], abs=1e-5)
    assert terms == pytest.approx({"total": 15.15})
    wide = torch.nn.Parameter(torch.zeros(2))
    descend([wide], pull(wide, (30, 40)), 1, lambda _: 0.5, optimizer="sgd", clip_norm=5.0)
    assert wide.tolist() == pytest.approx([-1.5, -2], abs=1e-5)


def test_the_proximal_gradient_pulls_back_to_where_the_round_began() -> None:
    """From 1 with slope 0.2, rate 0.5 and mu 0.4.

    Step 1: 1 - 0.5 * 0.2 = 0.9. Step 2: 0.9 - 0.5 * (0.2 + 0.4 * (0.9 - 1)) = 0.82.
    """
    parameter = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    slopes = pull(parameter, (0.2, 0.0), (0.2, 0.0))
    descend([parameter], slopes, 2, lambda _: 0.5, optimizer="sgd", proximal=0.4)
    assert parameter.tolist() == pytest.approx([0.82, 1.0])


def test_accumulated_micro_steps_are_one_step_on_the_mean_of_their_losses() -> None:
    """Gradients (0.1, 0) and (0.3, 0.4) are (0.2, 0.2) on the mean."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    seen: list[dict[str, float]] = []
    slopes = pull(parameter, (0.1, 0.0), (0.3, 0.4), (0.5, 0.0), (0.1, 0.0))
    terms = descend([parameter], slopes, 2, lambda _: 1.0, optimizer="sgd", accumulate=2, tick=seen.append)
    assert parameter.tolist() == pytest.approx([-0.2 - 0.3, -0.2])
    assert [each["total"] for each in seen] == pytest.approx([0.2, 0.3]) and terms == pytest.approx({"total": 0.25})


def test_adamws_first_step_is_the_rate_and_decay_shrinks_by_rate_times_weight() -> None:
    """Whatever the gradient's size: 1 * (1 - 0.1 * 0.5) - 0.1 = 0.85, and where there is no gradient 0.95."""
    parameter = torch.nn.Parameter(torch.ones(2))
    descend([parameter], pull(parameter, (0.01, 0.0)), 1, lambda _: 0.1, weight_decay=0.5)
    assert parameter.tolist() == pytest.approx([0.85, 0.95], abs=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stream_that_ends_before_the_steps_do_is_an_error(accumulate: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    slopes = pull(parameter, *[(0.1, 0.0)] * (3 * accumulate - 1))
    with pytest.raises(ValueError, match="the stream ended after 2 of 3 steps"):
        descend([parameter], slopes, 3, lambda _: 1.0, accumulate=accumulate)
