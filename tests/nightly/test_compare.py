"""A comparison on real Ray: two methods, one seed, one round; started again, cut short, and with one that fails."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedtalk_ray.comparison.compare import compare
from fedtalk_ray.comparison.experiment import Experiment
from fedtalk_ray.errors import RunError
from fedtalk_ray.runs.checkpoints import load_checkpoint
from fedtalk_ray.settings import TrainConfig


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of the runs: when it was written, and what it holds."""
    files = sorted(path for path in (folder / "runs").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def parameters(run: Path) -> bytes:
    checkpoint = load_checkpoint(run / "checkpoints")
    assert checkpoint is not None and checkpoint.round == 1
    return checkpoint.parameters.tobytes()


def test_a_comparison_goes_on_where_it_was_left_and_survives_a_failing_method(
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = {
        "name": "tiny",
        "out": str(tmp_path / "out"),
        "base": make_config(tmp_path / "unused", rounds=1).model_dump(mode="json"),
        "methods": {"isfa": {"strategy.name": "isfa"}, "fedavg": {"strategy.name": "fedavg"}},
        "seeds": [0],
        "metrics": ["unseen.loss", "held_out_loss"],
        "baseline": "fedavg",
    }
    out = compare(Experiment.model_validate(tree))
    results = json.loads((out / "results.json").read_text())
    assert [(run["method"], run["seed"]) for run in results["runs"]] == [("isfa", 0), ("fedavg", 0)]
    losses = {(run["method"], run["seed"]): run["figures"]["unseen.loss"] for run in results["runs"]}
    assert len(set(losses.values())) == 2 and all(0 < loss < 10 for loss in losses.values())
    assert (out / "table.csv").is_file() and (out / "plots" / "held_out_loss.png").is_file()

    before = contents(out)
    assert len([name for name in before if name.endswith("figures.json")]) == 2
    compare(Experiment.model_validate(tree))
    assert contents(out) == before, "complete runs are left alone"

    # As if the first run had died in its evaluation, and the second had never begun.
    cut, gone = (out / "runs" / "all" / method / "seed0" for method in ("isfa", "fedavg"))
    wanted = [parameters(cut), parameters(gone)]
    (cut / "history.jsonl").unlink()
    (cut / "figures.json").unlink()
    shutil.rmtree(cut / "pipeline")
    shutil.rmtree(gone)
    tree["methods"]["lost"] = {"pretrained": str(tmp_path / "nowhere")}
    capsys.readouterr()
    with pytest.raises(RunError, match=r"1 of 3 runs failed \(all/lost/seed0\)"):
        compare(Experiment.model_validate(tree))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedtalk: ")]
    assert len(lines) == 1 and "nowhere holds no pipeline" in lines[0]
    assert [parameters(cut), parameters(gone)] == wanted
    again = json.loads((out / "results.json").read_text())
    assert {(run["method"], run["seed"]): run["figures"]["unseen.loss"] for run in again["runs"]} == losses
    assert len(again["failed"]) == 1

    tree["methods"] = {"isfa": {"strategy.name": "fedavg"}}
    tree["baseline"] = None
    with pytest.raises(RunError, match="1 of 1 runs failed"):
        compare(Experiment.model_validate(tree))
    assert "belongs to another configuration" in capsys.readouterr().err
