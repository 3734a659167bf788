import math

import pytest

from fedtalk_ray.evaluation.summary import half_widths, merge


def test_means_leave_out_what_a_clip_does_not_know() -> None:
    clips = [{"psnr": 30.0, "identity": None}, {"psnr": 32.0, "identity": 0.5, "gap": None}]
    assert merge(clips) == {"psnr": 31.0, "identity": 0.5, "gap": None}


def test_what_is_not_finite_is_no_figure() -> None:
    """jitter_ratio against a still truth is infinite, and JSON knows no infinity."""
    assert merge([{"jitter_ratio": math.inf}, {"jitter_ratio": 1.0}]) == {"jitter_ratio": None}
    assert merge([]) == {}


def test_interval_by_the_t_table() -> None:
    """1, 2, 3 and 4: standard deviation sqrt(5/3); t for 3 degrees of freedom at 97.5% is 3.182."""
    clips = [{"a": float(value), "few": float(value) if value < 3 else None} for value in (1, 2, 3, 4)]
    widths = half_widths(clips)
    assert widths["a"] == pytest.approx(3.182 * math.sqrt(5 / 3) / 2, abs=1e-3)
    assert widths["few"] is None
