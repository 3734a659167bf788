"""A client slot as a plain object: what it does with a client that has no usable update."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.errors import TrainingError
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.training.backbone import untrained_pipeline


@pytest.fixture
def config(tmp_path: Path, make_config: Callable[..., TrainConfig], make_shards: Callable) -> TrainConfig:
    manifest = make_shards(tmp_path / "shards", {who: [30, 30] for who in "abc"})
    untrained_pipeline(manifest, widths=(16, 32), window=4).save_pretrained(str(tmp_path / "pretrained"))
    places = {"run": str(tmp_path / "run"), "shards": str(tmp_path / "shards")}
    return make_config(**places, pretrained=str(tmp_path / "pretrained"), aggregation="plain")


def test_a_client_whose_update_is_not_finite_abstains_in_a_plain_round_too(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B7: under secure aggregation it abstained, in the clear it ended the run."""
    slot, alone = ClientSlot(config), ClientSlot(config)
    shared = slot.start()
    alone.start()
    fit_one = slot._fit_one  # the one place where a client trains

    def fails_for_b(number: int, client: str, *rest: object) -> object:
        if client == "b":
            raise TrainingError("the local update holds values that are not finite")
        return fit_one(number, client, *rest)

    monkeypatch.setattr(slot, "_fit_one", fails_for_b)
    fitted, update = slot.fit(["a", "b", "c"], 1, shared)
    assert fitted.clients == ("a", "c") and fitted.refused == {"not finite": 1}
    _, others = alone.fit(["a", "c"], 1, shared)
    assert update is not None and others is not None
    assert np.array_equal(update.weighted_sum, others.weighted_sum)
    monkeypatch.setattr(slot, "_fit_one", lambda *_: fails_for_b(1, "b"))
    fitted, update = slot.fit(["b"], 2, shared)
    assert (fitted.clients, update) == ((), None) and fitted.refused == {"not finite": 1}
