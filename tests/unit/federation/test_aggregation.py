"""Plain aggregation: whatever the chunking, the server gets the weighted mean of all clients, or refuses."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedtalk_ray.federation.aggregation import WeightedSum, average, normalised
from fedtalk_ray.messages import PlainUpdate

NAN, INF = float("nan"), float("inf")


def update_of(*clients: tuple[list[float], float]) -> PlainUpdate:
    total = WeightedSum()
    for values, weight in clients:
        total.add(np.array(values, np.float32), weight)
    return PlainUpdate(1, total.vector(), total.total_weight)


def test_the_mean_by_hand() -> None:
    """(3 * [1, 2] + 1 * [5, -2]) / 4 = [2, 1], in one chunk or in two."""
    first, second = ([1.0, 2.0], 3.0), ([5.0, -2.0], 1.0)
    for updates in ([update_of(first, second)], [update_of(first), update_of(second)]):
        mean = average(updates, 2)
        assert mean.tolist() == [2.0, 1.0] and mean.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(
    vectors=arrays(np.float32, st.tuples(st.integers(1, 8), st.just(5)), elements=st.floats(-100, 100, width=32)),
    weights=st.lists(st.floats(1e-3, 1e4), min_size=8, max_size=8),
    cuts=st.sets(st.integers(1, 7)),
)
def test_any_chunking_gives_the_direct_weighted_mean(vectors: np.ndarray, weights: list[float], cuts: set[int]) -> None:
    weights = weights[: len(vectors)]
    bounds = [0, *sorted(cut for cut in cuts if cut < len(vectors)), len(vectors)]
    updates = []
    for begin, end in pairwise(bounds):
        total = WeightedSum()
        for vector, weight in zip(vectors[begin:end], weights[begin:end], strict=True):
            total.add(vector, weight)
        updates.append(PlainUpdate(1, total.vector(), total.total_weight))
    direct = np.average(vectors.astype(np.float64), axis=0, weights=weights)
    # Each slot rounds its sum to float32 once: half a unit in the last of 24 bits, of values up to 100.
    np.testing.assert_allclose(average(updates, 5), direct, rtol=2e-7, atol=100 * 2**-23)


def test_many_small_updates_are_not_lost_beside_a_large_one() -> None:
    """In float32, 2^24 + 1 = 2^24: the running sum is kept in float64."""
    total = WeightedSum()
    total.add(np.array([2.0**24], np.float32), 1.0)
    for _ in range(64):
        total.add(np.array([1.0], np.float32), 1.0)
    assert total.vector().tolist() == [2.0**24 + 64]
    assert total.total_weight == 65


def test_adding_does_not_touch_the_clients_own_vector() -> None:
    vector = np.array([1.0, 2.0], np.float32)
    total = WeightedSum()
    total.add(vector, 2.0)
    total.add(vector, 2.0)
    assert vector.tolist() == [1.0, 2.0] and total.vector().tolist() == [4.0, 8.0]


@pytest.mark.parametrize("weight", [0.0, -1.0, NAN, INF])
def test_a_weight_that_is_not_positive_and_finite_is_refused(weight: float) -> None:
    total = WeightedSum()
    with pytest.raises(ValueError, match=f"aggregation weight is {weight}; it must be positive and finite"):
        total.add(np.ones(2, np.float32), weight)
    with pytest.raises(ValueError, match="over no clients"):
        total.vector()


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        (np.zeros(4, np.float32), r"shape \(4,\) and dtype float32; expected float32 \[3\]"),
        (np.zeros((3, 1), np.float32), r"shape \(3, 1\)"),
        (np.zeros(3), r"dtype float64; expected float32 \[3\]"),
        (np.array([0, NAN, 0], np.float32), "values that are not finite"),
        (np.array([0, 0, -INF], np.float32), "values that are not finite"),
    ],
)
def test_a_vector_that_cannot_be_summed_is_refused(vector: np.ndarray, says: str) -> None:
    good = PlainUpdate(1, np.ones(3, np.float32), 1.0)
    for updates in ([PlainUpdate(1, vector, 1.0)], [good, PlainUpdate(1, vector, 1.0)]):
        with pytest.raises(ValueError, match=says):
            average(updates, 3)


@pytest.mark.parametrize("weight", [0.0, -2.0, NAN, INF])
def test_a_total_weight_that_is_not_positive_and_finite_is_refused(weight: float) -> None:
    """One slot's broken weight would otherwise turn every parameter to NaN, or point the round the wrong way."""
    good = PlainUpdate(1, np.ones(3, np.float32), 1.0)
    with pytest.raises(ValueError, match="weight"):
        average([good, PlainUpdate(1, np.ones(3, np.float32), weight)], 3)


def test_a_mean_beyond_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"), np.errstate(over="ignore"):
        average([PlainUpdate(1, np.full(3, 3e38, np.float32), 0.1)], 3)


def test_a_round_without_updates_is_refused() -> None:
    with pytest.raises(ValueError, match="without updates"):
        average([], 3)


def test_shares_sum_to_one() -> None:
    assert normalised(iter([1, 2, 5])) == [0.125, 0.25, 0.625]
