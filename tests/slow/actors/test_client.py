"""A client slot as a plain object: what it does with a client that has no usable update."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.errors import NothingToGive, RunError, ShardError, TrainingError
from fedtalk_ray.messages import Answers
from fedtalk_ray.outputs import OutputError
from fedtalk_ray.privacy.protocol import Code
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.training.backbone import untrained_pipeline


@pytest.fixture
def config(tmp_path: Path, make_config: Callable[..., TrainConfig], make_shards: Callable) -> TrainConfig:
    manifest = make_shards(tmp_path / "shards", {who: [30, 30] for who in "abc"})
    untrained_pipeline(manifest, widths=(16, 32), window=4).save_pretrained(str(tmp_path / "pretrained"))
    places = {"run": str(tmp_path / "run"), "shards": str(tmp_path / "shards")}
    return make_config(**places, pretrained=str(tmp_path / "pretrained"), aggregation="plain")


def test_a_client_whose_update_is_not_finite_abstains_in_a_plain_round_too(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    # The slot's log says who and why. Trouble of the client's own ends a run in the clear, by its name.
    monkeypatch.setattr(slot, "_fit_one", Mock(side_effect=[NothingToGive("its lips are still"), ShardError("b's")]))
    fitted, update = slot.fit(["b"], 2, shared)
    assert (fitted.clients, update) == ((), None) and fitted.refused == {"nothing to give": 1}
    assert "b is left out of round 2: its lips are still" in capsys.readouterr().out
    with pytest.raises(ShardError, match="b's"):
        slot.fit(["b"], 3, shared)


def test_a_clients_own_trouble_in_a_secure_round_is_no_other_clients(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended the run, by an error that named who had been drawn."""
    slot, plan = ClientSlot(make_config()), SimpleNamespace(round=3)
    fitted = (SimpleNamespace(weight=1.0), np.zeros(4, np.float32))
    fine = {"open_round": lambda _: plan, "join": lambda *_: None, "offer": lambda *_: None}
    for error in (ShardError("shard cannot be read"), RunError("key is damaged"), OutputError("full"), OSError("no")):
        for when in ("join", "fit"):
            second = [fitted, error, fitted]
            secure = fine | ({"join": Mock(side_effect=second)} if when == "join" else {})
            slot._secure = SimpleNamespace(**secure)  # type: ignore[assignment]
            fit = {"side_effect": second} if when == "fit" else {"return_value": fitted}
            monkeypatch.setattr(slot, "_fit_one", Mock(**fit))
            answers = slot.train(["a", "b", "c"], np.zeros(4, np.float32), b"plan")
            assert answers == Answers(("a", "c"), {str(Code.CANNOT_GO_ON): 1})
            assert f"b takes no part in round 3: {error}" in capsys.readouterr().out
