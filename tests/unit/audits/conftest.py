"""A round of nine clients with random updates: attacks on the protocol need no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedtalk_ray.audits.attack import Round
from fedtalk_ray.audits.attacks import lying_server
from fedtalk_ray.privacy import graph
from fedtalk_ray.privacy.protocol import Limits
from fedtalk_ray.settings import TrainConfig

CLIENTS, VALUES = 9, 3000

LARGE, DRAWN = 16, 6
"""The smallest cohort on a sparse graph in `sparse`, and how many holders each then has."""


@pytest.fixture
def make_round(make_config: Callable[..., TrainConfig]) -> Callable[..., Round]:
    """Updates of norm about 0.5, and weights between 0.4 and 1. Of nine clients eight must stay."""

    def make(clients: int = CLIENTS, **changes: Any) -> Round:
        tree: dict[str, Any] = {"aggregation": "secure", "cohort": {"size": clients}}
        # Far above the updates, as what a run without a clip norm of its own comes to.
        privacy = {"clip_norm": 30.0} | changes.pop("privacy", {})
        config = make_config(**tree | changes, privacy=privacy)
        rng = np.random.default_rng(5)
        names = [f"s{place}" for place in range(clients)]
        updates = {name: rng.normal(0, 0.5 / VALUES**0.5, VALUES).astype(np.float32) for name in names}
        weights = dict(zip(names, np.linspace(0.4, 1.0, clients).tolist(), strict=True))
        return Round(config, rng.normal(size=VALUES).astype(np.float32), bytes(range(32)), updates, weights)

    return make


@pytest.fixture
def few(make_round: Callable[..., Round]) -> Round:
    """Five clients, of whom four must stay: for tests that run many exchanges."""
    return make_round(5, privacy={"insecure_min_survivors": 3})


@pytest.fixture
def skellam() -> dict[str, Any]:
    return {"privacy": {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0}}


@pytest.fixture
def sparse(make_round: Callable[..., Round], monkeypatch: pytest.MonkeyPatch) -> Round:
    """A run whose cohorts have sparse graphs, of whose clients nine are audited."""
    monkeypatch.setattr(graph, "SPARSE", DRAWN)
    monkeypatch.setattr(lying_server, "LIED_TO", LARGE)
    monkeypatch.setattr(Limits.__init__, "__defaults__", (8, LARGE - 1))
    return make_round(cohort={"size": LARGE})
