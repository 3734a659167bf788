"""The canaries: what they prove without noise, that they stay below the accountant with it, and planted bugs."""

import math
from typing import Any

import numpy as np
import pytest

from fedtalk_ray.audits.attack import Outcome
from fedtalk_ray.audits.attacks.canaries import audit_rounds, canary_scores
from fedtalk_ray.audits.views import largest_cohort
from fedtalk_ray.privacy import noise, update_codec
from fedtalk_ray.privacy.accounting import Noise, Rounds, epsilon
from fedtalk_ray.privacy.protocol import Limits
from fedtalk_ray.settings import TrainConfig

CANARIES = 400
NOISE = {"mechanism": "skellam", "noise_multiplier": 1.3, "clip_norm": 0.5, "samples_cap": 300}


@pytest.fixture
def secure(make_config: Any) -> Any:
    def build(**privacy: Any) -> TrainConfig:
        return make_config(aggregation="secure", cohort={"size": 16}, privacy=privacy)

    return build


def value(outcome: Outcome, name: str) -> float:
    (found,) = [figure.value for figure in outcome.figures if figure.name == name]
    return found


def test_what_the_canaries_prove_never_exceeds_the_accountant(secure: Any) -> None:
    """The hard assertion, in both views, with fixed seeds; the claim is the accountant's own figure."""
    outcome = audit_rounds(secure(**NOISE), rate=0.25, rounds=4, taken=2, canaries=CANARIES)
    assert outcome.failures() == []
    claims = {figure.name: figure.claim for figure in outcome.figures if figure.claim is not None}
    assert len(claims) == 4
    for name, claim in claims.items():
        rate, rounds = (0.25, 4) if name.startswith("release") else (1.0, 2)
        exact = epsilon([Rounds(Noise("skellam", 1.3), rate, rounds)], 1e-5)
        assert claim == pytest.approx(exact, rel=1e-2)
        assert 0 <= value(outcome, name) <= claim
    # The attack is no blunt one: two rounds of that noise are worth an epsilon of at least one.
    assert value(outcome, "server view: epsilon at least, one run, Gaussian-like noise") > 1
    assert value(outcome, "server view: noise over what is promised") == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("aggregation", ["secure", "plain"])
def test_without_noise_canaries_are_found(make_config: Any, aggregation: str) -> None:
    config = make_config(aggregation=aggregation, cohort={"size": 16}, privacy={"clip_norm": 30.0})
    outcome = audit_rounds(config, rate=1.0, rounds=1, taken=1, canaries=CANARIES)
    assert outcome.failures() == []
    # All guesses right: (n guesses, all correct) refutes every epsilon with sigmoid(eps)^n below the level.
    bound = value(outcome, "server view: epsilon at least, one run")
    assert 3 < bound < math.log(CANARIES)
    assert all(figure.claim is None for figure in outcome.figures)


def test_a_central_gaussian_run_is_audited_too(make_config: Any) -> None:
    config = make_config(aggregation="plain", cohort={"size": 16}, privacy=NOISE | {"mechanism": "gaussian"})
    outcome = audit_rounds(config, rate=1.0, rounds=1, taken=1, canaries=CANARIES)
    assert outcome.failures() == []
    assert value(outcome, "server view: noise over what is promised") == pytest.approx(1.0, abs=0.15)


def test_scores_are_those_of_the_vectors_that_were_let_in(secure: Any) -> None:
    """Without noise a canary that is in scores one clip norm, whatever its weight, and one that is out nothing."""
    joined = np.arange(30) % 3 == 0
    scores = canary_scores(secure(**(NOISE | {"noise_multiplier": 1e-3})), joined, np.random.default_rng(0))
    assert scores == pytest.approx(joined.astype(float), abs=0.02)


def test_the_sums_carry_the_least_noise_that_the_guarantee_counts_on() -> None:
    for survivors in range(8, 200):
        cohort = largest_cohort(survivors, Limits())
        assert Limits().survivors(cohort) <= survivors
        # The more a liar's sum must be over, the less each client adds.
        others = [n for n in range(survivors, 2 * survivors) if Limits().survivors(n) <= survivors]
        assert Limits().opened(cohort) == max(map(Limits().opened, others))
        assert survivors >= 67 or cohort == max(others)


def test_rounds_that_too_few_joined_are_not_opened(secure: Any) -> None:
    """A rate that fills no cohort: there is nothing to see, and no noise is missed."""
    outcome = audit_rounds(secure(**NOISE), rate=0.005, rounds=3, taken=1, canaries=CANARIES)
    assert outcome.failures() == []
    assert value(outcome, "release view: epsilon at least, one run") == 0
    assert set(outcome.series["release view: canaries outside"]) == {0.0}


# Planted bugs: each one, and the line that names it.


def test_noise_divided_by_twenty_is_caught(secure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = noise.skellam
    monkeypatch.setattr(noise, "skellam", lambda *arguments: whole(*arguments) // 20)
    outcome = audit_rounds(secure(**NOISE), rate=1.0, rounds=1, taken=1, canaries=CANARIES)
    broken = " ".join(outcome.failures())
    assert "canaries prove an epsilon of at least" in broken and "the accountant claims" in broken
    assert "of the promised deviation" in broken


def test_central_noise_divided_by_twenty_is_caught(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = noise.gaussian
    monkeypatch.setattr(noise, "gaussian", lambda dimension, deviation: whole(dimension, deviation / 20))
    config = make_config(aggregation="plain", cohort={"size": 16}, privacy=NOISE | {"mechanism": "gaussian"})
    outcome = audit_rounds(config, rate=1.0, rounds=1, taken=1, canaries=CANARIES)
    assert any("canaries prove an epsilon" in line for line in outcome.failures())


@pytest.mark.parametrize("multiplier", [0.05, 1.3])
def test_one_clients_weight_times_twenty_after_clipping_is_caught(
    secure: Any, monkeypatch: pytest.MonkeyPatch, multiplier: float
) -> None:
    """One client of hundreds: no count of right guesses would show it."""
    clip, clients = update_codec.weigh_and_clip, iter(range(10**6))

    def heavy(update: np.ndarray, weight: float, clip_norm: float) -> tuple[np.ndarray, bool]:
        clipped, bound = clip(update, weight, clip_norm)
        return clipped * (20 if next(clients) == 77 else 1), bound

    monkeypatch.setattr(update_codec, "weigh_and_clip", heavy)
    # Rounding refuses vectors that are too long, so that bug has to sit behind it.
    rounded = update_codec.to_integers
    monkeypatch.setattr(update_codec, "to_integers", lambda vector, scale, rng, norm: rounded(vector, scale, rng))
    config = secure(**(NOISE | {"noise_multiplier": multiplier}))
    outcome = audit_rounds(config, rate=1.0, rounds=1, taken=1, canaries=CANARIES)
    assert any("one client moved the sums by" in line for line in outcome.failures())


def test_a_round_of_honest_clients_that_is_thrown_away_is_a_broken_promise(
    secure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = update_codec.weigh_and_clip
    monkeypatch.setattr(update_codec, "weigh_and_clip", lambda *arguments: (1000 * clip(*arguments)[0], True))
    rounded = update_codec.to_integers
    monkeypatch.setattr(update_codec, "to_integers", lambda vector, scale, rng, norm: rounded(vector, scale, rng))
    outcome = audit_rounds(secure(**NOISE), rate=1.0, rounds=1, taken=1, canaries=CANARIES)
    assert any("threw a round of honest clients away" in line for line in outcome.failures())
