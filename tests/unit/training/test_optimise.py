"""How long to train, and one optimiser step."""

from math import cos, pi
from time import monotonic

import pytest
import torch

from fedtalk_ray.training.optimise import budget, cosine, optimise


def test_a_number_of_steps_is_kept_and_shared_out_evenly() -> None:
    assert list(budget(4, None)) == [0, 0.25, 0.5, 0.75]
    assert list(budget(2, 1e9)) == [0, 0.5]


def test_a_time_is_kept() -> None:
    start, shares = monotonic(), []
    for done in budget(None, 0.05):
        shares.append(done)
    assert 0.05 <= monotonic() - start < 2
    assert shares == sorted(shares) and shares[0] < 0.5 and shares[-1] < 1


def test_the_cosine_falls_from_1_to_0() -> None:
    assert [cosine(done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert cosine(0.3) == pytest.approx((1 + cos(0.3 * pi)) / 2)


def test_a_step_takes_the_given_rate_and_a_gradient_of_at_most_1() -> None:
    """Gradient (30, 40) has norm 50 and becomes (0.6, 0.8); SGD at rate 0.5 moves by half of it."""
    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    optimiser = torch.optim.SGD(layer.parameters(), lr=123.0)
    for _ in range(2):  # the second step starts from a gradient of its own
        torch.nn.init.zeros_(layer.weight)
        optimise(optimiser, layer, layer(torch.tensor([30.0, 40.0])).sum(), 0.5)
        assert layer.weight.flatten().tolist() == pytest.approx([-0.3, -0.4], abs=1e-5)
