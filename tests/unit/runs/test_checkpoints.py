"""Checkpoints: whole, few, bound to what computed them, and one clear line where they cannot be used."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import RunError
from fedtalk_ray.runs.checkpoints import (
    KEPT,
    Checkpoint,
    config_fingerprint,
    load_checkpoint,
    mean_parameters,
    save_checkpoint,
)
from fedtalk_ray.settings import TrainConfig

MINIMAL: dict[str, Any] = {"run": "runs/a", "shards": "shards/a", "pretrained": "models/a", "phases": ["faces"]}


def checkpoint(number: int) -> Checkpoint:
    rng = np.random.default_rng(number)
    parameters, mean, square = rng.standard_normal((3, 7)).astype(np.float32)
    return Checkpoint(number, parameters, {"mean": mean, "square": square})


def config(**more: Any) -> TrainConfig:
    """One phase and no schedule: a run that may be given more rounds."""
    local = {"schedule": "constant"} | more.pop("local", {})
    return parse_config(MINIMAL | {"local": local} | more, "tree")


def test_what_is_loaded_is_what_was_saved_to_the_bit(tmp_path: Path) -> None:
    saved = replace(checkpoint(3), phase="speech", began=2, results={"units": np.ones(3, np.float32)})
    saved.parameters[:3] = np.nan, -0.0, np.float32(1e-45)
    assert load_checkpoint(tmp_path / "none") is None
    save_checkpoint(tmp_path, saved, "f")
    (tmp_path / ".round-00004.123.part").mkdir()  # of a killed run
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and (loaded.round, loaded.phase, loaded.began) == (3, "speech", 2)
    assert loaded.results["units"].tolist() == [1, 1, 1]
    assert loaded.parameters.tobytes() == saved.parameters.tobytes() and loaded.parameters.dtype == np.float32
    assert {name: array.tobytes() for name, array in loaded.optimizer.items()} == {
        name: array.tobytes() for name, array in saved.optimizer.items()
    }


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for number in range(12):
        save_checkpoint(tmp_path, checkpoint(number), "f")
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            f"round-{kept:05d}" for kept in range(max(0, number - KEPT + 1), number + 1)
        ]
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded.round == 11


def test_a_checkpoint_of_another_configuration_or_version_is_one_clear_line(tmp_path: Path, monkeypatch) -> None:
    save_checkpoint(tmp_path, checkpoint(1), config_fingerprint(config()))
    changed = config(local={"learning_rate": 0.5})
    other = config_fingerprint(changed)
    with pytest.raises(RunError, match="belongs to another configuration") as caught:
        load_checkpoint(tmp_path, changed)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path / "round-00001"), config_fingerprint(config()), other, "config.yaml"):
        assert part in message
    assert load_checkpoint(tmp_path, config()) is not None
    monkeypatch.setattr("fedtalk_ray.runs.checkpoints.VERSION", 1)
    with pytest.raises(RunError, match="or to another version of the recipe than 1;"):
        load_checkpoint(tmp_path, config())
    assert load_checkpoint(tmp_path) is not None


def break_state(text: str):
    return lambda folder: (folder / "state.json").write_text(text)


def cut_arrays(folder: Path) -> None:
    file = folder / "arrays.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def lose_parameters(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"optimizer.mean": np.zeros(7, np.float32)}, folder / "arrays.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(cut_arrays, id="cut"),
        pytest.param(lose_parameters, id="no-parameters"),
        pytest.param(break_state('{"round": 2, "con'), id="half-a-state"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_there(tmp_path: Path, damage) -> None:
    save_checkpoint(tmp_path, checkpoint(1), "f")
    save_checkpoint(tmp_path, checkpoint(2), "f")
    newest = tmp_path / "round-00002"
    damage(newest)
    with pytest.raises(RunError, match=f"checkpoint {newest} is damaged .*; remove it to go on") as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    shutil.rmtree(newest)
    before = load_checkpoint(tmp_path)
    assert before is not None and before.parameters.tobytes() == checkpoint(1).parameters.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"run": "runs/b"},
        {"rounds": 99},
        {"address": "auto"},
        {"evaluation": {"every": 3, "sample_every": 7}},
        {"failures": {"retries": 9, "quorum": 0.1, "deadline_s": 3.0}},
        {"server": {"average": 12}},  # B13: it blocked a resume
    ],
)
def test_a_resumed_run_may_change_what_alters_no_round(change: dict) -> None:
    assert config_fingerprint(config(**change)) == config_fingerprint(config())


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"pretrained": "models/b"},
        {"local": {"loss": {"tdc": 0.5}}},
        {"server": {"momentum": 0.5}},
        {"cohort": {"size": 30}},
        {"privacy": {"clip_norm": 2.0}},
    ],
    ids=lambda change: json.dumps(change),
)
def test_it_may_not_change_what_does(change: dict) -> None:
    assert config_fingerprint(config(**change)) != config_fingerprint(config())


@pytest.mark.parametrize("change", [{"rounds": 99}, {"server": {"average": 12}}])
@pytest.mark.parametrize(
    "recipe", [{"local": {"schedule": "cosine"}}, {"phases": ["units", "speech", "faces", "calibration"]}]
)
def test_what_a_later_round_depends_on_may_not_change(recipe: dict, change: dict) -> None:
    assert config_fingerprint(config(**recipe | change)) != config_fingerprint(config(**recipe))


def test_the_mean_is_of_the_newest_rounds_and_never_of_what_the_run_began_with(tmp_path: Path) -> None:
    def save(number: int, *values: float) -> None:
        save_checkpoint(tmp_path, Checkpoint(number, np.array(values, np.float32), {}), "f", kept=3)

    save(0, 100, 100)
    assert mean_parameters(tmp_path, 3).tolist() == [100, 100]
    save(1, 1, 8)
    assert mean_parameters(tmp_path, 3).tolist() == [1, 8]
    save(2, 3, 2)
    assert mean_parameters(tmp_path, 3).tolist() == [2, 5]
    save(3, 5, -1)
    save(4, 4, 2)
    assert mean_parameters(tmp_path, 3).tolist() == [4, 1] and mean_parameters(tmp_path, 2).tolist() == [4.5, 0.5]
    assert mean_parameters(tmp_path, 3, began=3).tolist() == [4, 2]
    assert mean_parameters(tmp_path, 3).dtype == np.float32


def test_a_mean_of_nothing_or_of_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no checkpoint"):
        mean_parameters(tmp_path, 2)
    for number in (1, 2):
        save_checkpoint(tmp_path, checkpoint(number), "f")
    (tmp_path / "round-00001" / "arrays.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match=r"round-00001 is damaged .*; remove it") as refused:
        mean_parameters(tmp_path, 2)
    assert "\n" not in str(refused.value)
