"""Clipping: whatever a client brings, its weighted update has norm at most 1 in units of the clip norm."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedtalk_ray.privacy.clipping import adapted, bit_size, weigh_and_clip
from fedtalk_ray.privacy.protocol import Code
from fedtalk_ray.settings import ADAPTIVE_FROM
from tests.unit.privacy.conftest import aborts

NAN, INF = float("nan"), float("inf")
updates = arrays(np.float32, st.integers(1, 20), elements=st.floats(-(2.0**100), 2.0**100, width=32))
weights = st.floats(0, 1e9)
clips = st.floats(1e-6, 1e6)


@settings(max_examples=30, deadline=None)
@given(update=updates, weight=weights, clip_norm=clips)
@example(np.full(20, 2.0**100, np.float32), 1e9, 1e-6)
@example(np.zeros(3, np.float32), 1.0, 1.0)
def test_below_the_clip_norm_nothing_is_lost_and_above_it_only_length(
    update: np.ndarray, weight: float, clip_norm: float
) -> None:
    before = update.tobytes()
    clipped, bound = weigh_and_clip(update, weight, clip_norm)
    assert update.tobytes() == before and np.linalg.norm(clipped) <= 1 + 1e-12
    weighted = weight * update.astype(np.float64)
    norm = float(np.linalg.norm(weighted))
    assert clipped.dtype == np.float64
    if norm <= clip_norm:
        assert not bound
        np.testing.assert_allclose(clipped, weighted / clip_norm, rtol=1e-12)
    else:
        assert bound
        assert np.linalg.norm(clipped) == pytest.approx(1)
        np.testing.assert_allclose(clipped * norm, weighted, rtol=1e-12)


def test_the_weight_comes_before_the_clip() -> None:
    """Clipping [3, 4] to 2.5 first and weighting it by 4 after would give norm 4."""
    update = np.array([3.0, 4.0], np.float32)
    clipped, bound = weigh_and_clip(update, 4.0, 2.5)
    np.testing.assert_allclose(clipped, [0.6, 0.8], rtol=1e-12)
    assert bound
    clipped, bound = weigh_and_clip(update, 0.25, 2.5)
    np.testing.assert_allclose(clipped * 2.5, 0.25 * update, rtol=1e-12)
    assert not bound


def test_the_clip_norm_itself_is_not_clipped() -> None:
    clipped, bound = weigh_and_clip(np.array([3.0, 4.0], np.float32), 1.0, 5.0)
    assert clipped.tolist() == [0.6, 0.8] and not bound
    assert weigh_and_clip(np.array([3.0, 4.0], np.float32), 1.0, np.nextafter(5.0, 0))[1]


@pytest.mark.parametrize(
    ("update", "weight"),
    [
        ([1.0, NAN], 1.0),
        ([INF, 0.0], 1.0),
        ([1e300, 1e300], 1.0),  # finite, but its norm is not
        ([1.0, 1.0], NAN),
        ([1.0, 1.0], INF),
        ([1.0, 1.0], -0.5),
    ],
)
def test_what_is_not_finite_is_refused(update: list[float], weight: float) -> None:
    with aborts(Code.NOT_FINITE), np.errstate(over="ignore"):
        weigh_and_clip(np.array(update), weight, 1.0)


def test_the_clip_norm_moves_towards_the_median() -> None:
    """C * exp(-0.2 * (share below C - 0.5))."""
    assert adapted(3.0, 0.5) == 3.0
    assert adapted(3.0, 1.0) == pytest.approx(3.0 * math.exp(-0.1))
    assert adapted(3.0, 0.0) == pytest.approx(3.0 * math.exp(0.1))
    for share, as_if in ((1.7, 1.0), (-2.0, 0.0), (INF, 1.0), (-INF, 0.0)):
        assert adapted(3.0, share) == adapted(3.0, as_if), "noise moves it no further than all or none"


@pytest.mark.parametrize(("multiplier", "cohort"), [(0.1, ADAPTIVE_FROM), (2.08, 256), (6.0, 10_000)])
def test_the_bits_size_solves_its_own_equation(multiplier: float, cohort: int) -> None:
    """The noise on the count, z * sqrt(1 + kappa^2 / 4) / kappa, is a twentieth of the cohort."""
    size = bit_size(multiplier, cohort)
    assert multiplier * math.sqrt(1 + size**2 / 4) / size == pytest.approx(cohort / 20)
