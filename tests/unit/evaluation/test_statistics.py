"""Intervals against scipy's own tests and against a table of Student's t."""

import math

import numpy as np
import pytest
from scipy import stats

from fedtalk_ray.evaluation.statistics import (
    Interval,
    fieller,
    half_widths,
    interval,
    merge,
    paired_difference,
    won_back,
)


def test_an_interval_by_hand() -> None:
    """1, 2, 3: mean 2, s = 1, and the table gives t(0.975; 2) = 4.303."""
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.n == 3
    assert found.half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert interval([5.0]) == Interval(5.0, None, 1) and not interval([5.0]).excludes(0)
    with pytest.raises(ValueError, match="at least one value"):
        interval([])
    assert interval([1.0, 2.0, 3.0], level=0.9).half_width == pytest.approx(2.9200 / math.sqrt(3), abs=1e-4)


def test_paired_differences_are_scipys_over_the_seeds_that_both_have() -> None:
    ours, theirs = {0: 1.0, 1: 3.5, 2: 2.0, 7: 99.0}, {2: 1.7, 0: 0.8, 1: 3.1, 5: -4.0}
    found = paired_difference(ours, theirs)
    expected = stats.ttest_rel([1.0, 3.5, 2.0], [0.8, 3.1, 1.7]).confidence_interval(0.95)
    assert found is not None and found.half_width is not None and found.n == 3
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(tuple(expected))
    assert found.excludes(0) == (expected.low > 0)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_the_share_won_back_by_hand() -> None:
    """A loss of 1 that corruption lifts to 2, and that comes back to 1.25: three quarters, whatever the sign means."""
    found = won_back({0: 1.0, 1: 1.0}, {0: 2.0, 1: 3.0}, {0: 1.25, 1: 2.0, 2: 9.0})
    assert found is not None
    assert found.by_seed == pytest.approx({0: 0.75, 1: 0.5})
    assert found.share.mean == pytest.approx(0.625)
    assert found.share.half_width == pytest.approx(12.7062 * 0.125, abs=1e-4)
    assert found.pooled == pytest.approx((0.75 + 1) / 3)
    scores = won_back({0: -1.0}, {0: -2.0}, {0: -1.25})
    assert scores is not None and scores.by_seed == pytest.approx({0: 0.75})
    assert scores.share.half_width is None and scores.low is None


def test_a_seed_without_harm_has_no_share() -> None:
    found = won_back({0: 1.0, 1: 1.0}, {0: 1.0, 1: 2.0}, {0: 1.0, 1: 1.5})
    assert found is not None and found.by_seed == {1: 0.5}
    assert won_back({0: 1.0}, {0: 1.0}, {0: 1.0}) is None
    assert fieller(np.array([0.1, -0.1, 0.2]), np.array([0.3, -0.4, 0.2])) is None
    assert won_back({0: 1.0}, {1: 1.0}, {0: 1.0}) is None


def test_fiellers_bounds_are_where_the_t_test_turns() -> None:
    rng = np.random.default_rng(3)
    below = rng.normal(2.0, 0.3, 6)
    above = 0.6 * below + rng.normal(0, 0.2, 6)
    bounds = fieller(above, below)
    assert bounds is not None
    low, high = bounds
    assert low < above.mean() / below.mean() < high
    for ratio in bounds:
        assert stats.ttest_1samp(above - ratio * below, 0).pvalue == pytest.approx(0.05, abs=1e-9)
    assert stats.ttest_1samp(above - 0.5 * (low + high) * below, 0).pvalue > 0.05
    assert stats.ttest_1samp(above - (high + 0.01) * below, 0).pvalue < 0.05


def test_means_leave_out_what_a_clip_does_not_know_and_what_is_not_finite() -> None:
    clips = [{"psnr": 30.0, "identity": None}, {"psnr": 32.0, "identity": 0.5, "gap": None}]
    assert merge(clips) == {"psnr": 31.0, "identity": 0.5, "gap": None}
    assert merge([{"jitter_ratio": math.inf}, {"jitter_ratio": 1.0}]) == {"jitter_ratio": None} and merge([]) == {}
    widths = half_widths([{"a": float(value), "few": value if value == 1 else None} for value in (1, 2, 3, 4)])
    assert widths == {"a": pytest.approx(3.182 * math.sqrt(5 / 3) / 2, abs=1e-3), "few": None}
