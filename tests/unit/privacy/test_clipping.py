"""Clipping: whatever a client brings, its weighted update has norm at most 1 in units of the clip norm."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedtalk_ray.privacy.clipping import adapted, bit_size, weigh_and_clip
from fedtalk_ray.privacy.protocol import Aborted, Code
from fedtalk_ray.settings import ADAPTIVE_FROM

NAN, INF = float("nan"), float("inf")
ROUNDING = 1 + 1e-12

updates = arrays(np.float32, st.integers(1, 20), elements=st.floats(-(2.0**100), 2.0**100, width=32))
weights = st.floats(0, 1e9)
clips = st.floats(1e-6, 1e6)


@settings(max_examples=60, deadline=None)
@given(update=updates, weight=weights, clip_norm=clips)
@example(np.full(20, 2.0**100, np.float32), 1e9, 1e-6)
def test_no_client_counts_for_more_than_one(update: np.ndarray, weight: float, clip_norm: float) -> None:
    clipped, _ = weigh_and_clip(update, weight, clip_norm)
    assert np.linalg.norm(clipped) <= ROUNDING


@settings(max_examples=60, deadline=None)
@given(update=updates, weight=weights, clip_norm=clips)
def test_below_the_clip_norm_nothing_is_lost_and_above_it_only_length(
    update: np.ndarray, weight: float, clip_norm: float
) -> None:
    clipped, bound = weigh_and_clip(update, weight, clip_norm)
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
    clip_then_weight = 4.0 * update * min(1, 2.5 / 5) / 2.5
    assert np.linalg.norm(clip_then_weight) == pytest.approx(4)
    # A small weight: the clip does not bind at all, and a quarter of the update is sent instead of an eighth.
    clipped, bound = weigh_and_clip(update, 0.25, 2.5)
    np.testing.assert_allclose(clipped * 2.5, 0.25 * update, rtol=1e-12)
    assert not bound


def test_the_clip_norm_itself_is_not_clipped() -> None:
    clipped, bound = weigh_and_clip(np.array([3.0, 4.0], np.float32), 1.0, 5.0)
    assert clipped.tolist() == [0.6, 0.8] and not bound
    assert weigh_and_clip(np.array([3.0, 4.0], np.float32), 1.0, np.nextafter(5.0, 0))[1]


def test_no_weight_or_no_update_is_a_zero_vector() -> None:
    for update, weight in [(np.ones(3, np.float32), 0.0), (np.zeros(3, np.float32), 1.0)]:
        clipped, bound = weigh_and_clip(update, weight, 1.0)
        assert clipped.tolist() == [0, 0, 0] and not bound


def test_the_clients_own_update_is_not_touched() -> None:
    update = np.array([3.0, 4.0], np.float32)
    weigh_and_clip(update, 2.0, 1.0)
    assert update.tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("update", "weight"),
    [
        ([1.0, NAN], 1.0),
        ([INF, 0.0], 1.0),
        ([0.0, -INF], 0.0),
        ([1e300, 1e300], 1.0),  # finite, but its norm is not
        ([1e300, 0.0], 1e10),
        ([1.0, 1.0], NAN),
        ([1.0, 1.0], INF),
        ([1.0, 1.0], -0.5),
    ],
)
def test_what_is_not_finite_is_refused(update: list[float], weight: float) -> None:
    with pytest.raises(Aborted) as refused, np.errstate(over="ignore"):
        weigh_and_clip(np.array(update), weight, 1.0)
    assert refused.value.code == Code.NOT_FINITE


def test_the_clip_norm_moves_towards_the_median() -> None:
    """C * exp(-0.2 * (share below C - 0.5))."""
    assert adapted(3.0, 0.5) == 3.0
    assert adapted(3.0, 1.0) == pytest.approx(3.0 * math.exp(-0.1))
    assert adapted(3.0, 0.0) == pytest.approx(3.0 * math.exp(0.1))
    assert adapted(3.0, 0.4) > 3.0 > adapted(3.0, 0.6)


@pytest.mark.parametrize(("share", "as_if"), [(1.7, 1.0), (-2.0, 0.0), (INF, 1.0), (-INF, 0.0)])
def test_noise_on_the_count_moves_the_clip_norm_no_further_than_all_or_none(share: float, as_if: float) -> None:
    assert adapted(3.0, share) == adapted(3.0, as_if)


@pytest.mark.parametrize("start", [0.01, 1.0, 300.0])
def test_the_clip_norm_converges_to_the_median_of_a_fixed_population(start: float) -> None:
    norms = np.random.default_rng(0).lognormal(0.5, 1.0, 1001)
    clip_norm = start
    for _ in range(400):
        clip_norm = adapted(clip_norm, float(np.mean(norms <= clip_norm)))
    assert clip_norm == pytest.approx(np.median(norms), rel=0.01)


@pytest.mark.parametrize("multiplier", [0.1, 1.0, 2.08, 6.0])
@pytest.mark.parametrize("cohort", [ADAPTIVE_FROM, 256, 10_000])
def test_the_bits_size_solves_its_own_equation(multiplier: float, cohort: int) -> None:
    """The noise on the count, z * sqrt(1 + kappa^2 / 4) / kappa, is a twentieth of the cohort."""
    size = bit_size(multiplier, cohort)
    assert multiplier * math.sqrt(1 + size**2 / 4) / size == pytest.approx(cohort / 20)


def test_the_bit_of_a_large_cohort_costs_next_to_nothing() -> None:
    """64 clients, z = 1.3: the vector with its bit is 2.1% longer than without; 1000 clients: 0.01%."""
    assert math.sqrt(1 + bit_size(1.3, 64) ** 2 / 4) == pytest.approx(1.0213, abs=1e-4)
    assert math.sqrt(1 + bit_size(1.3, 1000) ** 2 / 4) < 1.0001
