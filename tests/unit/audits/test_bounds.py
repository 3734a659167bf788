"""Areas, rates and bounds by hand; what two attackers hold of one update; nearest enrolments; the one-shot estimate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest

from fedtalk_ray.audits import bounds
from fedtalk_ray.audits.attack import NotFinite, Round
from fedtalk_ray.audits.attacks import one_shot
from fedtalk_ray.audits.attacks.reidentification import nearest
from fedtalk_ray.audits.subject import check_can_be_audited, mode
from fedtalk_ray.audits.views import ALL_BUT_ONE, SERVER, Views
from fedtalk_ray.errors import RunError

Make = Callable[..., Round]


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    inside, outside = [1.0, 2.0, 3.0, 9.0], [0.0, 1.5, 2.5]
    pairs = np.mean([one > other for one in inside for other in outside])
    area, rate = bounds.separation(inside, outside, "loss")
    # The auditor takes the hull of the curve, so its area is at least that of the bare pairs.
    assert area.name == "loss: AUC" and area.value >= pairs
    assert area.low is not None and area.high is not None and area.low <= area.value <= area.high
    # Two of four lie above everybody outside.
    assert rate.value == pytest.approx(0.5, abs=0.02)
    perfect, _ = bounds.separation([2.0, 3.0], [0.0, 1.0], "loss")
    assert perfect.value == 1.0
    for scores in (([1.0, float("nan")], [0.0]), ([1.0], [float("inf")]), ([], [0.0])):
        with pytest.raises(NotFinite):
            bounds.separation(*scores, "loss")


def test_a_share_of_hits_has_its_exact_interval() -> None:
    figure = bounds.proportion("rank-1", 0, 10, 0.1)
    # Nothing out of n: the upper limit is 1 - (alpha / 2)^(1 / n).
    assert (figure.value, figure.low) == (0.0, 0.0) and figure.high == pytest.approx(1 - 0.025 ** (1 / 10))


PRIVACY = {"mechanism": "skellam", "noise_multiplier": 2.0, "clip_norm": 0.1, "samples_cap": 300}


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({"aggregation": "plain"}, "no privacy"),
        ({"aggregation": "secure"}, "secure aggregation only"),
        ({"aggregation": "plain", "privacy": PRIVACY | {"mechanism": "gaussian"}}, "differential privacy only"),
        ({"aggregation": "secure", "privacy": PRIVACY}, "both"),
    ],
)
def test_what_two_attackers_hold_of_one_update(make_round: Make, settings: dict[str, Any], title: str) -> None:
    """The server sees one update only where sums are plain; who knows everything else needs noise to be stopped."""
    audited = make_round(**settings)
    assert mode(audited.config) == title
    seen = Views(audited, np.random.default_rng(0))
    exact, opened, held = seen.exact, seen.opened, seen.of("s3")
    weighted = audited.weights["s3"] * audited.updates["s3"].astype(float)
    clipped = weighted * min(1.0, 0.1 / np.linalg.norm(weighted)) if "privacy" in settings else weighted
    assert exact["s3"] == pytest.approx(clipped)
    total = np.sum(list(exact.values()), axis=0)
    if settings["aggregation"] == "plain":
        assert held[SERVER] == pytest.approx(clipped)
    else:
        assert np.array_equal(held[SERVER], opened)
    left = held[ALL_BUT_ONE] - clipped
    assert left == pytest.approx(opened - total)
    if "privacy" in settings:
        # z times the clip norm, and of nine clients nobody was missing whose noise would count.
        assert np.std(left) == pytest.approx(2.0 * 0.1, rel=0.1)
    else:
        assert np.linalg.norm(left) < 1e-3 * np.linalg.norm(clipped)


def test_the_nearest_is_told_by_what_is_not_common() -> None:
    common = np.array([10.0, 0.0, 0.0, 0.0])
    enrolled = {name: common + np.eye(4)[place] for place, name in enumerate("abc", 1)}
    for place, name in enumerate("abc", 1):
        assert nearest(common + 2 * np.eye(4)[place], enrolled) == name
    with pytest.raises(NotFinite):
        nearest(np.full(4, np.nan), enrolled)


def test_the_one_shot_estimate_is_near_the_gaussian_epsilon(make_round: Make) -> None:
    """Nothing but noise z in the sums: an attacker sees a Gaussian mechanism of that z."""
    audited = make_round(12, privacy=PRIVACY | {"noise_multiplier": 0.6})
    outcome = one_shot.estimate(audited)
    (figure,) = outcome.figures
    assert outcome.failures() == [] and figure.claim is not None
    exact = dp_accounting.get_epsilon_gaussian(0.6, 1e-5)
    assert 0.5 * exact < figure.value < 1.2 * exact and figure.value < 1.2 * figure.claim


def test_a_simulated_cohort_has_no_claim_to_be_held_to(make_round: Make, tmp_path: Path) -> None:
    config = make_round(privacy=PRIVACY | {"simulated_cohort": 200, "simulated_population": 2000}).config
    with pytest.raises(RunError, match="simulates a cohort of 200: its clients get less privacy"):
        check_can_be_audited(tmp_path, config)
    varied = make_round(local={"vary": True}).config
    with pytest.raises(RunError, match="varies pictures"):
        check_can_be_audited(tmp_path, varied)
