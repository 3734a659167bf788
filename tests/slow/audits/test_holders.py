"""The attack on the wire on a sparse graph: sound draws of holders stand it, and every planted rule is named."""

from __future__ import annotations

import random
from collections.abc import Collection

import pytest

from fedtalk_ray.audits import holders
from fedtalk_ray.audits.attack import Round
from fedtalk_ray.privacy import secure_client
from tests.slow.audits.test_server_saw import audit, figures
from tests.unit.audits.conftest import DRAWN, LARGE


@pytest.mark.nightly
def test_a_sound_exchange_on_a_sparse_graph_stands_it(sparse: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    # A guess that hits one client's draw by chance names nothing.
    monkeypatch.setattr(holders, "is_foretold", lambda view, owner, drawn: owner == min(view.holders))
    outcome = audit(sparse)
    assert outcome.failures() == []
    found = figures(outcome)
    assert found["clients in the smallest part of the graph"] == LARGE
    assert found["holders that are drawn again in a second exchange"] == pytest.approx(DRAWN / (LARGE - 1), abs=0.15)
    # All of two exchanges, and of the third all but the one who leaves before it shares and the one before it masks.
    assert len(outcome.series["p values of masked bytes"]) == 3 * LARGE - 2


def of_the_name(cohort: Collection[str], name: str, most: int) -> tuple[str, ...]:
    return tuple(random.Random(name).sample(sorted(set(cohort) - {name}), DRAWN))


def test_holders_that_can_be_foretold_are_named(sparse: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure_client, "chosen", of_the_name)
    failures = audit(sparse).failures()
    says = "server_saw: holders can be foretold: clients draw the same in two exchanges"
    assert [line for line in failures if line.startswith(says)], failures
