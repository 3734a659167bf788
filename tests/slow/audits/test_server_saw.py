"""The attack on the wire: a sound exchange stands it, and every planted way of giving an update away is named."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from fedtalk_ray.audits.attack import Outcome, Round
from fedtalk_ray.audits.attacks.server_saw import attack, unlisted
from fedtalk_ray.audits.effort import FAST
from fedtalk_ray.audits.masks import uniform_p
from fedtalk_ray.messages import Consistency, MaskedInput
from fedtalk_ray.privacy import noise, protocol, wire
from fedtalk_ray.privacy.masking import Mask
from fedtalk_ray.privacy.protocol import Frame

Make = Callable[..., Round]


def audit(audited: Round) -> Outcome:
    return attack(SimpleNamespace(round=audited), FAST)


def figures(outcome: Outcome) -> dict[str, float]:
    return {figure.name: figure.value for figure in outcome.figures}


def test_a_sound_exchange_without_noise_stands_it(make_round: Make) -> None:
    outcome = audit(make_round())
    assert outcome.failures() == []
    found = figures(outcome)
    assert found["fields that are not on the list"] == 0
    assert found["self-mask seeds that the server has before they are opened"] == 0
    assert 0 < found["error of the opened mean over the stated bound"] < 1
    assert 0 < found["largest correlation of a masked vector with its update"] < 0.12
    assert len(outcome.series["p values of masked bytes"]) == 9 + 9 + 8


def test_under_plain_aggregation_the_server_has_what_it_is_sent(make_round: Make) -> None:
    outcome = audit(make_round(aggregation="plain", slots={"count": 4}))
    assert outcome.failures() == [], "nothing was promised"
    assert figures(outcome) == {
        "correlation of a chunk of one client with its true update": pytest.approx(1.0),
        "clients in a chunk's sum, at most": 3,
    }
    assert "Nothing is promised against the server" in outcome.notes[0]


@pytest.mark.parametrize(
    ("where", "name", "bug", "says"),
    [
        (protocol, "seed_commitment", lambda *said: said[-1], "the mask seed is known to the server: it was sent in"),
        (Mask, "_apply", lambda *_: None, "masked vectors are not uniform"),
    ],
)
def test_a_planted_bug_is_named(
    few: Round, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, bug: Any, says: str
) -> None:
    monkeypatch.setattr(where, name, bug)
    failures = audit(few).failures()
    assert [line for line in failures if line.startswith(f"server_saw: {says}")], failures


def test_noise_is_measured_and_a_twentieth_of_it_is_named(
    make_round: Make, monkeypatch: pytest.MonkeyPatch, skellam: dict[str, Any]
) -> None:
    audited = make_round(5, privacy=skellam["privacy"] | {"insecure_min_survivors": 3})
    outcome = audit(audited)
    assert outcome.failures() == []
    assert figures(outcome)["noise in the opened mean over what is configured"] == pytest.approx(1, abs=0.1)
    assert figures(outcome)["opened mean along the true one, in deviations of the noise"] < 6
    whole = noise.skellam
    monkeypatch.setattr(noise, "skellam", lambda *arguments: whole(*arguments) // 20)
    failures = audit(audited).failures()
    assert any("the opened mean has 0.0" in line for line in failures), failures


def framed(message: Any, kind: str) -> bytes:
    return wire.encode(Frame(kind, wire.encode(message), bytes(64)))


KEY = bytes(32)
GOOD = framed(Consistency("a", KEY, (1,)), "Consistency")


@pytest.mark.parametrize(
    ("stage", "data", "says"),
    [
        ("confirm", GOOD, None),
        ("mask", framed(MaskedInput("a", np.zeros(5, np.uint32), bytes(32), ()), "MaskedInput"), None),
        ("confirm", GOOD + b"x", "the frame of confirm is no Consistency"),
        ("confirm", framed(Consistency("a", KEY + b"x", ()), "Consistency"), "Consistency.survivors of 33 bytes"),
        ("confirm", framed(Consistency("a loss of 0.5", KEY, ()), "Consistency"), "Consistency.client names nobody"),
        ("mask", framed(MaskedInput("a", np.zeros(6, np.uint32), KEY, ()), "MaskedInput"), "MaskedInput.vector of 6"),
    ],
)
def test_what_is_not_listed_is_found_in_a_frame(stage: str, data: bytes, says: str | None) -> None:
    found = unlisted(stage, data, ("a", "b"), 5)
    assert found == [] if says is None else len(found) == 1 and found[0].startswith(says)


def test_the_test_for_uniform_bytes_is_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    for vector in (rng.integers(0, 2**32, 500, np.uint32), np.arange(500, dtype=np.uint32) * np.uint32(2**22)):
        counts = np.bincount(vector.view(np.uint8), minlength=256)
        assert uniform_p(vector) == pytest.approx(chisquare(counts).pvalue, rel=1e-6)
