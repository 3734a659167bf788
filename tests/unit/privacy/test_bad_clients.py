"""What one bad client can do to a sum, and what one that is curious can read of it."""

import math

import numpy as np
import pytest

from fedtalk_ray.privacy.fixed_point import to_integers, to_ring
from fedtalk_ray.privacy.protocol import Aborted, Code
from tests.unit.privacy.test_update_codec import codec_of, encoded, summed, updates_of, weights_like


@pytest.mark.parametrize("beyond", [0, 8])
def test_whether_a_noisy_sum_is_thrown_away_does_not_tell_a_clients_sign(beyond: int) -> None:
    """S7: somebody brings a value to where the bound is, so that the victim's sign decides; noise hides it."""
    clients = 8
    codec = codec_of(4, clients, 1.0, mechanism="gaussian", clip_norm=1.0)
    thrown = []
    for sign in (1.0, -1.0):
        victim = encoded(codec, np.array([[sign * 0.5, 0, 0, 0]], np.float32), 1.0, 1.0, clients)[0]
        honest = clients * codec.sensitivity
        pushed = np.zeros(codec.length, np.uint32)
        pushed[0] = round(honest + beyond * codec.sensitivity)
        thrown.append(0)
        for _ in range(200):
            try:
                codec.decode(victim + pushed, clients, clients, 1.0)
            except Aborted:
                thrown[-1] += 1
    assert abs(thrown[0] - thrown[1]) < 120, thrown
    assert (sum(thrown) > 0) == (beyond == 8)


BAD: dict[str, tuple[float, float]] = {
    "twelve clip norms and no weight": (12.0, 0.0),
    "a weight that cancels the others'": (0.0, -0.999),
    "both": (12.0, -0.999),
    "a long update of full weight": (9.0, 1.0),
}


@pytest.mark.parametrize("clients", [8, 64])
@pytest.mark.parametrize("bad", BAD)
def test_one_bad_client_moves_the_average_by_no_more_than_the_clip_norm(clients: int, bad: str) -> None:
    """S4: without noise. Such a sum is thrown away, or the average is within C."""
    dimension, clip_norm = 1000, 2.0
    codec = codec_of(dimension, clients)
    weights = weights_like("isfa", clients, 3)
    vectors = encoded(codec, updates_of(clients, dimension), weights, clip_norm)
    length, weight = BAD[bad]
    honest = weights[1:].sum()
    values = np.zeros(codec.length)
    values[:dimension] = codec.zoom * length / math.sqrt(dimension)
    values[dimension] = weight * (honest if weight < 0 else 1.0)
    vectors[0] = to_ring(to_integers(values, codec.scale, np.random.default_rng(0)))
    try:
        update = codec.decode(summed(vectors), clients, clients, clip_norm).update
    except Aborted as refused:
        assert refused.code in (Code.SUM_TOO_LARGE, Code.TOO_FEW)
        return
    assert np.linalg.norm(update) <= clip_norm * 1.001
