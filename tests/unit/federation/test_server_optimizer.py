"""Server optimisers: three steps by hand, and against their published formulas in float64."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedtalk_ray.federation.server_optimizer import make_optimizer
from fedtalk_ray.settings import ServerConfig

VECTORS = arrays(np.float32, 6, elements=st.floats(-1e3, 1e3, width=32))


def trace(config: ServerConfig, start: np.ndarray, updates: list[np.ndarray]) -> list[np.ndarray]:
    optimizer, parameters, kept = make_optimizer(config, len(start)), start, []
    for update in updates:
        before = parameters.tobytes(), update.tobytes()
        kept.append(optimizer.step(parameters, update))
        assert (parameters.tobytes(), update.tobytes()) == before
        parameters = kept[-1]
    return kept


@settings(max_examples=20, deadline=None)
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
