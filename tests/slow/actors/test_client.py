"""A client slot as a plain object: what it does with a client that has no usable update."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.errors import RunError, ShardError, TrainingError
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


def test_a_client_with_nothing_to_teach_is_left_out_by_name(
    tmp_path: Path, make_config: Callable[..., TrainConfig], make_shards: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """Silence in `speech`, lips that never move in `units`: the others go on, and the slot's log says who and why."""
    manifest = make_shards(tmp_path / "shards", {who: [30, 30] for who in "abc"})
    untrained_pipeline(manifest, widths=(16, 32), window=4).save_pretrained(str(tmp_path / "pretrained"))
    for who, column in (("a", "speech"), ("b", "landmarks")):
        still(tmp_path / "shards" / f"client={who}" / "train-000.parquet", column)
    # What was changed is no longer what the manifest vouches for.
    place = tmp_path / "shards" / "manifest.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"files": {}}))
    places = {"run": str(tmp_path / "run"), "shards": str(tmp_path / "shards")}
    phases = {"phases": ["units", "speech", "faces"], "speech": {"steps": 1, "batch_size": 2}}
    slot = ClientSlot(make_config(**places, **phases, pretrained=str(tmp_path / "pretrained"), aggregation="plain"))
    units, update = slot.fit(["a", "b", "c"], 1, slot.start())
    assert units.clients == ("a", "c") and units.refused == {"nothing to give": 1}
    assert "b is left out of round 1: its lips never move" in capsys.readouterr().out
    assert update is not None
    shared = slot.enter("speech", {"units": update.weighted_sum / np.float32(update.total_weight)})
    speech, _ = slot.fit(["a", "c"], 2, shared)
    assert speech.clients == ("c",) and speech.refused == {"nothing to give": 1}
    assert "a is left out of round 2: its clips are silent" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error", [ShardError("shard cannot be read"), RunError("key is damaged"), OutputError("full"), OSError("denied")]
)
@pytest.mark.parametrize("when", ["join", "fit"])
def test_a_clients_own_trouble_in_a_secure_round_is_no_other_clients(
    make_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    when: str,
) -> None:
    """It ended the run, by an error that named who had been drawn."""
    slot = ClientSlot(make_config())

    def fails_for_b(client: str) -> None:
        if client == "b":
            raise error

    joins = lambda client, _: fails_for_b(client) if when == "join" else None  # noqa: E731
    plan = SimpleNamespace(round=3)
    slot._secure = SimpleNamespace(open_round=lambda _: plan, join=joins, offer=lambda *_: None)  # type: ignore

    def fit(number: int, client: str, *_: object) -> object:
        fails_for_b(client)
        return SimpleNamespace(weight=1.0), np.zeros(4, np.float32)

    monkeypatch.setattr(slot, "_fit_one", fit)
    answers = slot.train(["a", "b", "c"], np.zeros(4, np.float32), b"plan")
    assert answers == Answers(("a", "c"), {str(Code.CANNOT_GO_ON): 1})
    assert f"b takes no part in round 3: {error}" in capsys.readouterr().out


def test_a_clients_own_trouble_ends_a_run_in_the_clear_by_its_name(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = ClientSlot(config)

    def fails(*_: object) -> None:
        raise ShardError("shard client=b/train-000.parquet cannot be read")

    monkeypatch.setattr(slot, "_fit_one", fails)
    with pytest.raises(ShardError, match="client=b"):
        slot.fit(["b"], 1, np.zeros(4, np.float32))


def still(file: Path, column: str) -> None:
    """Rewrites a shard so that a column says the same in every frame."""
    table = pq.read_table(file)
    kind = np.float32 if column == "landmarks" else np.float16
    values = [np.frombuffer(cell.as_py(), kind) for cell in table[column]]
    frames = len(values[0]) // 136 if column == "landmarks" else 1
    same = [np.tile(each[: len(each) // frames], frames) if frames > 1 else np.zeros_like(each) for each in values]
    changed = pa.array([each.astype(kind).tobytes() for each in same], pa.binary())
    pq.write_table(table.set_column(table.column_names.index(column), column, changed), file)
