"""Experiments: what wins over what, who is left out, one clear line for a mistake, and the shipped files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedtalk_ray.comparison.experiment import Planned, load_experiment, plan
from fedtalk_ray.errors import ConfigError, ShardError
from fedtalk_ray.shards.format import Manifest, ShardWriter
from fedtalk_ray.shards.unreliable import corrupt_shards
from tests.conftest import REPOSITORY


def shards(folder: Path, identities: int, clips: int, unseen: int) -> None:
    """Shards with one frame a clip."""
    folder.mkdir(parents=True)
    names = [f"id{who:04d}" for who in range(identities)]
    shapes = {"frames": [1, 1, 3], "latents": [1, 1, 1], "speech": [1, 1], "waveform": []}
    writer = ShardWriter(
        folder, Manifest("synthetic", 1, 25, 25, "patch", "x", shapes), set(names[identities - unseen :])
    )
    for name in names:
        for clip in range(clips):
            writer.add(name, f"clip{clip}", {array: np.ones([1, *shape]) for array, shape in shapes.items()})
    writer.close()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shards(tmp_path / "shards" / "ten", 12, 3, 2)
    return tmp_path


def write(tree: dict[str, Any], **more: Any) -> Path:
    path = Path("e.yaml")
    base = {"name": "try", "out": "out", "base": {"shards": "shards/ten", "pretrained": "p"}, "methods": {"a": {}}}
    path.write_text(yaml.safe_dump(base | tree | more, sort_keys=False))
    return path


def planned(**tree: Any) -> list[Planned]:
    return plan(load_experiment(write(tree)))


def test_methods_win_over_populations_and_those_over_the_command_and_the_base(here: Path) -> None:
    tree = {
        "base": {"shards": "shards/ten", "pretrained": "p", "rounds": 1, "local": {"steps": 1, "batch_size": 1}},
        "populations": {"wide": {"settings": {"rounds": 3, "local": {"steps": 3}}}, "plain": {}},
        "methods": {"a": {"local.steps": 4}, "b": ["strategy.name=fedavg", "server.learning_rate=1e-1"]},
        "seeds": [7, 3],
    }
    runs = plan(load_experiment(write(tree)), ["rounds=2", "local.steps=2", "local.batch_size=2"])
    by_label = {run.label(): run.config for run in runs}
    assert list(by_label) == [
        f"{population}/{method}/seed{seed}" for seed in (7, 3) for population in ("wide", "plain") for method in "ab"
    ]
    steps = {label: (each.rounds, each.local.steps, each.local.batch_size) for label, each in by_label.items()}
    assert steps["wide/a/seed7"] == (3, 4, 2) and steps["wide/b/seed7"] == (3, 3, 2)
    assert steps["plain/a/seed3"] == (2, 4, 2) and steps["plain/b/seed3"] == (2, 2, 2)
    one = by_label["plain/b/seed3"]
    assert (one.strategy.name, one.server.learning_rate, one.seed) == ("fedavg", 0.1, 3)
    assert one.run == str(Path("out/runs/plain/b/seed3"))
    assert by_label["plain/a/seed3"].strategy.name == "isfa", "b's settings must not leak into a"


def test_participation_is_a_share_of_the_clients(here: Path) -> None:
    shares = {f"s{share}": {"participation": share} for share in (0.1, 0.25, 0.5, 0.01, 1)}
    sizes = [run.config.cohort.size for run in planned(populations=shares, seeds=[0])]
    assert sizes == [1, 2, 5, 1, 10]


def test_corrupted_clients_are_left_out_of_the_whole_pair_and_seeds_name_shards(here: Path) -> None:
    victims = [set(corrupt_shards("shards/ten", f"shards/bad{seed}", share=0.3, seed=seed)) for seed in (0, 1)]
    assert victims[0] != victims[1]
    runs = planned(
        methods={"clean": {}, "bad": {"shards": "shards/bad{seed}"}}, seeds=[0, 1], evaluation_shards="shards/ten"
    )
    assert [run.config.shards for run in runs] == ["shards/ten", "shards/bad0", "shards/ten", "shards/bad1"]
    assert [set(run.excluded) for run in runs] == [victims[0], victims[0], victims[1], victims[1]]
    assert {run.evaluation_shards for run in runs} == {"shards/ten"}
    assert [run.excluded for run in planned(seeds=[0])] == [()]
    with pytest.raises(ConfigError, match="exclude names 's99', who is not in shards/ten"):
        planned(exclude=["s99"])
    methods = {"bad": {"shards": "shards/bad{seed}"}}
    assert set(planned(methods=methods, seeds=[0], exclude=["id0000"])[0].excluded) == victims[0] | {"id0000"}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"models": {"a": "p"}, "methods": {"a": {}}}, "'a' is a method and a model; give one another name"),
        ({"models": {"b": "p"}, "baseline": "c", "methods": {"a": {}}}, "'c' is no method; there are a, b"),
        ({"metods": 1}, "unknown key 'metods'; the nearest valid key is 'methods'"),
        ({"populations": {"x": {"share": 1}}}, "unknown key 'populations.x.share'"),
        ({"methods": {"a": {"local.stepz": 1}}}, "try, all/a: unknown key 'local.stepz'; the nearest valid key is"),
        ({"methods": {"a": {"seed": 3}}}, "'seed' cannot be set"),
        ({"methods": {"a": {"rounds.x": 3}}, "base": {"shards": "shards/ten", "rounds": 1}}, "rounds is a value"),
        ({"methods": {}}, "methods"),
        ({"seeds": [1, 1]}, "name one twice"),
        ({"won_back": {"clean": "a", "harmed": "x", "rescued": "a"}}, "'x' is no method"),
        ({"metrics": ["unseen.losss"]}, "metric 'unseen.losss' is unknown; give held_out_loss"),
        ({"populations": {"x": {"participation": 1.5}}}, "participation is 1.5"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(here: Path, tree: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan(load_experiment(write(tree)))
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not Path("out").exists()


def test_missing_shards_and_files_are_named(here: Path) -> None:
    with pytest.raises(ShardError, match="fedtalk prepare"):
        planned(evaluation_shards="shards/none")
    with pytest.raises(ConfigError, match=r"experiment none\.yaml cannot be read"):
        load_experiment("none.yaml")
    Path("e.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_experiment("e.yaml")


def test_shipped_experiments_are_read() -> None:
    for path in (REPOSITORY / "jobs" / "configs" / "compare").iterdir():
        shipped = load_experiment(path, out="elsewhere")
        assert shipped.seeds == [0, 1, 2] and shipped.out == "elsewhere", path
