"""Fixed point: rounding keeps the mean and the norm's bound, sums in the ring are exact, bad values never get in."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedtalk_ray.privacy.fixed_point import SCALE_BITS, check_range, from_ring, rounded_norm, to_integers, to_ring
from fedtalk_ray.privacy.protocol import Aborted, Code
from tests.unit.privacy.conftest import aborts

NAN, INF = float("nan"), float("inf")


def test_rounding_is_unbiased() -> None:
    """The mean's deviation is at most 0.5 / sqrt(20000) steps."""
    values = np.array([0.0, 1.0, 0.1, -0.1, 0.5, -0.5, 2.75, -3.999, 1000.001])
    draws = to_integers(np.repeat(values, 20_000), 1.0, np.random.default_rng(0)).reshape(len(values), -1)
    assert np.abs(draws.mean(1) - values).max() < 4.5 * 0.5 / math.sqrt(20_000)
    assert (draws[:2] == values[:2, None]).all()


def test_rounding_stays_unbiased_under_the_norms_bound() -> None:
    """Drawing again when the norm is too large must not pull the vector inwards."""
    rng = np.random.default_rng(1)
    vector = rng.normal(size=2_000)
    vector /= np.linalg.norm(vector)
    scale = 2.0**10
    mean = np.mean([to_integers(vector, scale, rng, norm=1.0) for _ in range(200)], axis=0)
    along = mean @ vector / scale
    assert abs(along - 1) < 4.5 * 0.5 / scale / math.sqrt(200)


@settings(max_examples=30, deadline=None)
@given(
    direction=arrays(np.float64, st.integers(1, 60), elements=st.floats(-1, 1)),
    norm=st.floats(0.01, 10),
    scale=st.sampled_from([1.0, 2.0, 16.0, 1024.0]),
    seed=st.integers(0, 2**32 - 1),
)
@example(np.ones(1), 4.3, 1.0, 0)
@example(np.ones(1), 4.3, 1.0, 3)
@example(np.ones(60), 0.01, 1.0, 0)
def test_a_rounded_vector_is_never_longer_than_its_bound(
    direction: np.ndarray, norm: float, scale: float, seed: int
) -> None:
    length = float(np.linalg.norm(direction))
    vector = direction * (norm / length) if length > 1e-100 else direction
    rng = np.random.default_rng(seed)
    for _ in range(5):
        integers = to_integers(vector, scale, rng, norm)
        assert integers.dtype == np.int64 and (np.abs(integers - vector * scale) < 1).all()
        assert np.linalg.norm(integers) <= rounded_norm(norm, len(vector), scale) * (1 + 1e-12)


def test_the_bound_is_enforced_and_not_only_likely() -> None:
    """4.3 rounds to 5 in three draws of ten. The bound is sqrt(4.3^2 + 1/4 + 4.3 + 1/2) = 4.85."""
    vector, rng = np.array([4.3]), np.random.default_rng(0)
    assert rounded_norm(4.3, 1, 1.0) == pytest.approx(math.sqrt(4.3**2 + 0.25 + 4.3 + 0.5))
    assert rounded_norm(0.0, 4, 1.0) == pytest.approx(math.sqrt(1 + 1)), "all of d values up by a step"
    assert rounded_norm(1.0, 10**6, 2.0**10) == pytest.approx(math.sqrt(2**20 + 250_000 + 2**10 + 500))
    assert SCALE_BITS == 18
    free = [to_integers(vector, 1.0, rng)[0] for _ in range(1000)]
    bound = [to_integers(vector, 1.0, rng, norm=4.3)[0] for _ in range(1000)]
    assert 250 < free.count(5) < 350 and bound.count(5) == 0


@settings(max_examples=30, deadline=None)
@given(vectors=arrays(np.int64, st.tuples(st.integers(1, 20), st.just(4)), elements=st.integers(-(10**8), 10**8)))
@example(np.array([[2**31 - 1, -(2**31), 0, -1]]))
@example(np.array([[2**31 - 1, -(2**31), 5, -5], [2**31 - 1, -(2**31), 5, -5], [-(2**31), 2**31, -10, 9]]))
def test_sums_in_the_ring_are_exact(vectors: np.ndarray) -> None:
    """Even where they wrap on the way, as long as the whole sum is in range."""
    total = np.zeros(4, np.uint32)
    for vector in vectors:
        ring = to_ring(vector)
        assert ring.dtype == np.uint32 and ring.tolist() == [int(value) % 2**32 for value in vector]
        total += ring
    assert from_ring(total, 1.0).tolist() == vectors.sum(0).tolist()
    assert from_ring(total, 4.0).tolist() == (vectors.sum(0) / 4).tolist()


@pytest.mark.parametrize("norm", [None, 1.0])
def test_a_value_that_no_integer_can_hold_is_refused(norm: float | None) -> None:
    """A cast would make some number of it, and with `norm` rounding would go on for ever."""
    for bad in (NAN, INF, -INF, 1e300, -1e300, 2.0**62):
        vector = np.array([0.1, 0.2, bad])
        with aborts(Code.NOT_FINITE):
            to_integers(vector, 1.0, np.random.default_rng(0), norm)


def test_a_value_that_only_the_scale_pushes_out_of_range_is_refused() -> None:
    """Also in float32, whose largest number is finite."""
    assert to_integers(np.array([2.0**43]), 2.0**18, np.random.default_rng(0)).tolist() == [2**61]
    for vector in (np.array([2.0**44]), np.array([3e38], np.float32)):
        with pytest.raises(Aborted, match="beyond every range") as refused:
            to_integers(vector, 2.0**18, np.random.default_rng(0))
        assert refused.value.code == Code.NOT_FINITE


@pytest.mark.parametrize(
    ("largest", "bits", "fits"),
    [(8191.999, 18, True), (8192.0, 18, False), (8192.001, 18, False), (1.0, 30, True), (2.0, 30, False)],
)
def test_the_range_by_hand(largest: float, bits: int, fits: bool) -> None:
    """2^31 / 2^18 = 8192, and the sum +2^31 itself would read as -2^31."""
    assert check_range(largest, 2.0**bits) is fits
