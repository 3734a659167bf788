"""The canaries: what they prove without noise, that they stay below the accountant with it, and planted bugs."""

import math
from typing import Any

import pytest

from fedtalk_ray.audits.attack import Outcome
from fedtalk_ray.audits.attacks.canaries import audit_rounds
from fedtalk_ray.privacy import noise
from fedtalk_ray.privacy.accounting import Noise, Rounds, epsilon
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


def test_noise_divided_by_twenty_is_caught(secure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = noise.skellam
    monkeypatch.setattr(noise, "skellam", lambda *arguments: whole(*arguments) // 20)
    outcome = audit_rounds(secure(**NOISE), rate=1.0, rounds=1, taken=1, canaries=CANARIES)
    broken = " ".join(outcome.failures())
    assert "canaries prove an epsilon of at least" in broken and "the accountant claims" in broken
    assert "of the promised deviation" in broken
