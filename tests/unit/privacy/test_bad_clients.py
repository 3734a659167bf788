"""What one bad client can do to a sum, and what one that is curious can read of it."""

import math

import numpy as np
import pytest

from fedtalk_ray.privacy.fixed_point import to_integers, to_ring
from fedtalk_ray.privacy.protocol import Aborted, Code, Limits
from tests.unit.privacy.test_update_codec import codec_of, encoded, summed, updates_of, weights_like


@pytest.mark.parametrize("beyond", [0, 8])
def test_whether_a_noisy_sum_is_thrown_away_does_not_tell_a_clients_sign(beyond: int) -> None:
    """S7: one who sends in another's league brings a value to where the bound is, so that the victim's sign decides; of
    the exact sum it was read 200 times of 200. With the noise first both signs are as good as the other."""
    clients = 8
    codec = codec_of(4, clients, 1.0, mechanism="gaussian", clip_norm=1.0)
    thrown = []
    for sign in (1.0, -1.0):
        victim = encoded(codec, np.array([[sign * 0.5, 0, 0, 0]], np.float32), 1.0, 1.0, clients)[0]
        honest = clients * codec.sensitivity
        pushed = np.zeros(codec.length, np.uint32)
        pushed[0] = round(honest + beyond * codec.sensitivity)
        count = 0
        for _ in range(200):
            try:
                codec.decode(victim + pushed, clients, clients, 1.0)
            except Aborted:
                count += 1
        thrown.append(count)
    # The victim's value is half of the noise's deviation either way; the bound lies at the exact sum's, or 8 deviations
    # beyond, where one sum of two is thrown away.
    assert abs(thrown[0] - thrown[1]) < 120, thrown
    assert (sum(thrown) > 0) == (beyond == 8)


@pytest.mark.parametrize("clients", [8, 16, 64])
def test_what_others_add_is_enough_for_a_client_that_knows_its_own_noise(clients: int) -> None:
    """S2: by itself a curious client took its own part off, and epsilon was 8.4 to 8.6 where the books said 8."""
    codec = codec_of(100_000, clients, 1.0, mechanism="skellam")
    fewest = Limits().survivors(clients)
    still = np.zeros((fewest, 100_000), np.float32)
    vectors = encoded(codec, still, 1.0, 1.0, clients)
    left = summed(vectors) - vectors[0]
    noise = left.view(np.int32).astype(np.float64)
    # 200,000 draws tell a deviation to half a percent.
    assert noise.std() >= 0.99 * codec.sensitivity


BAD: dict[str, tuple[float, float]] = {
    "twelve clip norms and no weight": (12.0, 0.0),
    "a weight that cancels the others'": (0.0, -0.999),
    "both": (12.0, -0.999),
    "a long update of full weight": (9.0, 1.0),
}


@pytest.mark.parametrize("clients", [8, 16, 64])
@pytest.mark.parametrize("bad", BAD)
def test_one_bad_client_moves_the_average_by_no_more_than_the_clip_norm(clients: int, bad: str) -> None:
    """S4: without noise a client sent what it liked beside a weight of its own, and the update's norm was 582, 6e4 and
    1.2e8. Now such a sum is thrown away, or the average is within C."""
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


def test_a_round_of_nearly_no_weight_stays_within_the_clip_norm_too() -> None:
    """What rounding may add is then more than all weights: one that sent a step of weight made 70 clip norms of it."""
    dimension, clients, clip_norm = 1000, 8, 2.0
    codec = codec_of(dimension, clients)
    vectors = encoded(codec, updates_of(clients, dimension), 1e-9, clip_norm)
    vectors[0] = 0
    vectors[0, dimension] = 1
    vectors[0, :dimension] = np.uint32(clients)
    try:
        update = codec.decode(summed(vectors), clients, clients, clip_norm).update
    except Aborted:
        return
    assert 0 < np.linalg.norm(update) <= clip_norm * 1.001


def test_an_honest_clients_long_update_is_clipped_before_it_is_weighted() -> None:
    """By hand: an update of norm 5 at C = 2 counts as one of norm 2, whatever its weight."""
    codec = codec_of(2, 8)
    updates = np.array([[3.0, 4.0]] + [[0.0, 0.0]] * 7, np.float32)
    opened = codec.decode(summed(encoded(codec, updates, 0.25, 2.0)), 8, 8, 2.0)
    np.testing.assert_allclose(opened.update, [1.2 / 8, 1.6 / 8], atol=1e-4)
    assert opened.unclipped == pytest.approx(7 / 8, abs=1e-3)
