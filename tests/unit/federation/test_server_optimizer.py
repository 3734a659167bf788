"""Server optimisers: three steps by hand, and against their published formulas in float64."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedtalk_ray.federation.server_optimizer import make_optimizer
from fedtalk_ray.settings import ServerConfig

VECTORS = arrays(np.float32, 6, elements=st.floats(-1e3, 1e3, width=32))


def trace(config: ServerConfig, start: np.ndarray, updates: list[np.ndarray]) -> list[np.ndarray]:
    optimizer, parameters, kept = make_optimizer(config, len(start)), start, []
    for update in updates:
        parameters = optimizer.step(parameters, update)
        kept.append(parameters)
    return kept


@settings(max_examples=50, deadline=None)
@given(VECTORS, VECTORS)
def test_sgd_at_rate_1_without_momentum_is_plain_averaging_to_the_bit(start: np.ndarray, update: np.ndarray) -> None:
    (after,) = trace(ServerConfig(), start, [update])
    assert after.dtype == np.float32
    np.testing.assert_array_equal(after, start + update)


def test_sgd_with_momentum_by_hand() -> None:
    """m = 1, 1.9, 2.71 at momentum 0.9; theta moves by half of each."""
    one = np.ones(1, np.float32)
    steps = trace(ServerConfig(learning_rate=0.5, momentum=0.9), np.zeros(1, np.float32), [one, one, one])
    assert [float(step[0]) for step in steps] == pytest.approx([0.5, 1.45, 2.805], rel=1e-6)


def test_adam_by_hand() -> None:
    """One parameter, updates 1, 2, -1, beta1 = beta2 = 1/2, rate 1, tau = 1/2, so v starts at 1/4 (Reddi et al. 2021)

    m = 1/2, 5/4, 1/8.  v = 5/8, 37/16, 53/32.
    """
    config = ServerConfig(optimizer="adam", learning_rate=1.0, momentum=0.5, beta2=0.5, epsilon=0.5)
    steps = trace(config, np.zeros(1, np.float32), [np.array([value], np.float32) for value in (1, 2, -1)])
    first = 0.5 / (sqrt(5 / 8) + 0.5)
    second = first + 1.25 / (sqrt(37 / 16) + 0.5)
    third = second + 0.125 / (sqrt(53 / 32) + 0.5)
    assert [float(step[0]) for step in steps] == pytest.approx([first, second, third], rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    start=VECTORS,
    updates=st.lists(VECTORS, min_size=3, max_size=3),
    rate=st.floats(1e-3, 2),
    momentum=st.floats(0, 0.99),
    beta2=st.floats(0, 0.999),
    tau=st.floats(1e-2, 1),
    name=st.sampled_from(["sgd", "adam"]),
)
def test_three_steps_against_float64(start, updates, rate, momentum, beta2, tau, name) -> None:
    config = ServerConfig(optimizer=name, learning_rate=rate, momentum=momentum, beta2=beta2, epsilon=tau)
    theta, m, v = start.astype(np.float64), np.zeros(6), np.full(6, tau**2)
    size = np.abs(theta)
    for after, update in zip(trace(config, start, updates), [u.astype(np.float64) for u in updates], strict=True):
        if name == "sgd":
            m = momentum * m + update
            theta = theta + rate * m
        else:
            m = momentum * m + (1 - momentum) * update
            v = beta2 * v + (1 - beta2) * update**2
            theta = theta + rate * m / (np.sqrt(v) + tau)
        size = np.maximum(size, np.abs(theta)) + rate * 1e3
        assert after.dtype == np.float32
        assert (np.abs(after - theta) <= 2e-5 * size).all()


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (ServerConfig(), set()),
        (ServerConfig(momentum=0.9), {"momentum"}),
        (ServerConfig(optimizer="adam"), {"mean", "square"}),
    ],
)
def test_all_that_a_step_remembers_is_in_the_state(config: ServerConfig, names: set[str]) -> None:
    """A fresh optimiser that is given the state goes on as the old one would."""
    rng = np.random.default_rng(0)
    updates = [rng.standard_normal(5).astype(np.float32) for _ in range(4)]
    old, parameters = make_optimizer(config, 5), np.zeros(5, np.float32)
    for update in updates[:3]:
        parameters = old.step(parameters, update)
    assert set(old.state) == names
    assert all(array.dtype == np.float32 and array.shape == (5,) for array in old.state.values())
    new = make_optimizer(config, 5)
    new.state.update({name: array.copy() for name, array in old.state.items()})
    np.testing.assert_array_equal(new.step(parameters, updates[3]), old.step(parameters, updates[3]))


def test_a_step_leaves_its_inputs_alone() -> None:
    for config in (ServerConfig(momentum=0.5), ServerConfig(optimizer="adam")):
        parameters, update = np.ones(3, np.float32), np.full(3, 2, np.float32)
        optimizer = make_optimizer(config, 3)
        for _ in range(2):
            optimizer.step(parameters, update)
        assert parameters.tolist() == [1, 1, 1] and update.tolist() == [2, 2, 2]
