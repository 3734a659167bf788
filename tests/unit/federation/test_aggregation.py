"""Plain aggregation: whatever the chunking, the server gets the weighted mean of all clients, or refuses."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedtalk_ray.federation.aggregation import WeightedSum, average
from fedtalk_ray.messages import PlainUpdate

NAN, INF = float("nan"), float("inf")


@settings(max_examples=20, deadline=None)
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
            before = vector.tobytes()
            total.add(vector, weight)
            assert vector.tobytes() == before
        updates.append(PlainUpdate(1, total.vector(), total.total_weight))
    direct = np.average(vectors.astype(np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(average(updates, 5), direct, rtol=2e-7, atol=100 * 2**-23)


def test_many_small_updates_are_not_lost_beside_a_large_one() -> None:
    """In float32, 2^24 + 1 = 2^24: the running sum is kept in float64."""
    total = WeightedSum()
    total.add(np.array([2.0**24], np.float32), 1.0)
    for _ in range(64):
        total.add(np.array([1.0], np.float32), 1.0)
    assert total.vector().tolist() == [2.0**24 + 64]
    assert total.total_weight == 65


@pytest.mark.parametrize(
    ("vector", "weight", "says"),
    [
        (np.zeros(4, np.float32), 1.0, r"shape \(4,\) and dtype float32; expected float32 \[3\]"),
        (np.zeros((3, 1), np.float32), 1.0, r"shape \(3, 1\)"),
        (np.zeros(3), 1.0, r"dtype float64; expected float32 \[3\]"),
        (np.array([0, NAN, 0], np.float32), 1.0, "values that are not finite"),
        (np.array([0, 0, -INF], np.float32), 1.0, "values that are not finite"),
        (np.full(3, 3e38, np.float32), 0.1, "not finite"),
        *((np.ones(3, np.float32), weight, "weight") for weight in (0.0, -2.0, NAN, INF)),
    ],
)
def test_an_update_that_cannot_be_summed_is_refused(vector: np.ndarray, weight: float, says: str) -> None:
    """One slot's broken weight would otherwise turn every parameter to NaN, or point the round the wrong way."""
    bad = PlainUpdate(1, vector, weight)
    for updates in ([bad], [PlainUpdate(1, np.ones(3, np.float32), 0.01), bad]):
        with pytest.raises(ValueError, match=says), np.errstate(over="ignore"):
            average(updates, 3)
    with pytest.raises(ValueError, match="without updates"):
        average([], 3)
    with pytest.raises(ValueError, match="over no clients"):
        WeightedSum().vector()
