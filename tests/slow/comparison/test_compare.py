"""What a comparison makes of finished runs: figures, tables, plots, failures. Training itself is in tests/ray."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtalk_ray.comparison.compare import compare, figure, finish, measured, report, why
from fedtalk_ray.comparison.experiment import Experiment, Planned
from fedtalk_ray.config import parse_config, save_config
from fedtalk_ray.errors import RunError
from fedtalk_ray.evaluation.evaluate import Instruments
from fedtalk_ray.evaluation.metrics import mouth_psnr, psnr
from fedtalk_ray.evaluation.window_figures import window_figures
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.reader import read_pieces

METRICS = ["held_out_loss", "unseen.loss", "seen.motion_error", "unseen.copy.mouth_psnr"]


def experiment(out: Path, **more: Any) -> Experiment:
    tree: dict[str, Any] = {"name": "try", "out": str(out), "base": {}, "metrics": METRICS}
    tree["methods"] = {"good": {}, "bad": {}, "saved": {}}
    return Experiment.model_validate(tree | more)


@pytest.fixture(scope="module")
def run(make_shards, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """A run of one round by hand: an untrained pipeline and a history."""
    folder = tmp_path_factory.mktemp("compare")
    make_shards(folder / "shards", {"ann": [8] * 3, "bob": [8] * 3, "guest": [8, 8]}, unseen=("guest",))
    shutil.copytree(exported / "pipeline", folder / "run" / "pipeline")
    lines = [{"round": 1, "held_out_loss": 0.5}, {"round": 2}, {"round": 3, "held_out_loss": 0.25}]
    (folder / "run" / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shards = str(folder / "shards")
    config = parse_config({"run": str(folder / "run"), "shards": shards, "pretrained": "p", "rounds": 3}, "test")
    return Planned("all", "good", 0, config, shards, ("ann",))


def test_a_run_is_measured_once_by_the_named_metrics(run: Planned, tmp_path: Path) -> None:
    result = measured(run, experiment(tmp_path), Instruments())
    windows = window_figures(run.config.run, run.config.shards, ["ann"])
    truths = [
        piece.frames for piece in read_pieces(run.config.shards, load_manifest(run.config.shards), "guest", "test")
    ]
    copied = np.mean([mouth_psnr(truth[:1].repeat(len(truth), 0), truth) for truth in truths])
    assert result["figures"] == {
        "held_out_loss": 0.25,
        "unseen.loss": windows["unseen"]["loss"],
        "seen.motion_error": windows["seen"]["motion_error"],
        "unseen.copy.mouth_psnr": pytest.approx(copied),
    }
    assert result["curves"] == {"held_out_loss": {1: 0.5, 3: 0.25}, "lip_agreement": {}}
    kept = Path(run.config.run) / "figures.json"
    written = kept.stat().st_mtime_ns
    assert measured(run, experiment(tmp_path), Instruments()) == result
    assert kept.stat().st_mtime_ns == written, "the same figures are not measured twice"
    with open(kept) as file:
        seen = json.load(file)["videos"]["seen"]["copy"]["psnr"]
    truth = next(read_pieces(run.config.shards, load_manifest(run.config.shards), "bob", "test")).frames
    assert seen == pytest.approx(psnr(truth[:1].repeat(len(truth), 0), truth)), "of bob alone: ann is excluded"
    without = measured(run, experiment(tmp_path, metrics=["unseen.loss"]), None)
    assert "videos" not in without["detail"] and kept.stat().st_mtime_ns != written


def test_a_run_whose_weights_are_gone_stays_complete(run: Planned, tmp_path: Path, monkeypatch) -> None:
    """Three small files tell that it went to its end and what came of it: it is neither trained nor measured again."""
    result = measured(run, experiment(tmp_path), Instruments())
    kept = tmp_path / "kept"
    kept.mkdir()
    config = run.config.model_copy(update={"run": str(kept)})
    for name in ("figures.json", "history.jsonl"):
        shutil.copy(Path(run.config.run) / name, kept / name)
    with open(kept / "history.jsonl", "a") as history:
        history.write(json.dumps({"round": config.all_rounds}) + "\n")
    save_config(config, kept / "config.yaml")

    def trained(*_: object, **__: object) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr("fedtalk_ray.comparison.compare.train", trained)
    there = replace(run, config=config)
    finish(there)
    assert measured(there, experiment(tmp_path), Instruments()) == result
    other = replace(run, config=config.model_copy(update={"seed": 9}))
    with pytest.raises(RunError, match="was made with other settings"):
        finish(other)
    (kept / "history.jsonl").write_text('{"round": 1}\n')
    with pytest.raises(AssertionError, match="it was trained"):
        finish(there)


def test_a_figure_that_was_not_measured_is_named() -> None:
    detail = {"windows": {"seen": {"loss": 1.5}}, "videos": {"seen": {"copy": {"psnr": 30, "identity": None}}}}
    assert figure("seen.loss", detail, {}) == 1.5 and figure("seen.copy.psnr", detail, {}) == 30
    with pytest.raises(RunError, match=r"metric 'unseen\.loss': 'unseen' was not measured; there are seen"):
        figure("unseen.loss", detail, {})
    with pytest.raises(RunError, match="'psnrr' was not measured; there are psnr, identity"):
        figure("seen.copy.psnrr", detail, {})
    with pytest.raises(RunError, match="metric 'held_out_loss' was not measured in any round"):  # B18
        figure("held_out_loss", detail, {})


def finished(method: str, seed: int, loss: float) -> dict[str, Any]:
    figures = {"seen.loss": loss}
    named = {"population": "all", "method": method, "seed": seed, "run": "r"}
    return named | {"figures": figures, "curves": {"held_out_loss": {1: loss}}}


def test_the_report_holds_every_run_and_the_share_won_back(tmp_path: Path) -> None:
    won_back = {"clean": "good", "harmed": "bad", "rescued": "saved"}
    wanted = experiment(tmp_path, metrics=["seen.loss"], seeds=[0, 1], won_back=won_back, baseline="bad")
    losses = {"good": (1.0, 1.2), "bad": (2.0, 2.3), "saved": (1.5, 1.75)}
    runs = [finished(method, seed, losses[method][seed]) for method in losses for seed in (0, 1)]
    report(wanted, runs, [{"population": "all", "method": "good", "seed": 2, "run": "r", "reason": "lost"}])
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["runs"]) == 6 and results["failed"][0]["reason"] == "lost"
    share = results["won_back"]["all"]["seen.loss"]
    assert share["by_seed"] == pytest.approx({"0": 0.5, "1": 0.5}) and share["pooled"] == pytest.approx(0.5)
    markdown = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "Share won back: (saved − bad) / (good − bad)" in markdown and "| seen.loss | 0.50 ± 0.00 |" in markdown
    with open(tmp_path / "table.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert float(rows["good"]["difference"]) == pytest.approx(-1.05) and rows["bad"]["difference"] == ""
    assert (rows["good"]["seeds"], rows["good"]["pairs"], rows["good"]["baseline"]) == ("2", "2", "bad")
    assert (tmp_path / "table.tex").is_file()
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"held_out_loss.png", "bars.png"}


@pytest.mark.nightly
def test_a_model_that_no_run_made_is_measured_once_beside_every_seed(run: Planned, tmp_path: Path, monkeypatch) -> None:
    """Its row is of the same clips as the methods', and methods are compared with it as with one another."""
    models = {"before": run.config.run, "other": str(Path(run.config.run) / "pipeline")}
    wanted = experiment(tmp_path, models=models, metrics=["unseen.loss"], seeds=[0, 1], baseline="before")
    (Path(run.config.run) / "figures.json").unlink(missing_ok=True)
    asked: list[Any] = []
    real = window_figures
    monkeypatch.setattr(
        "fedtalk_ray.comparison.compare.window_figures", lambda *parts: asked.append(parts[0]) or real(*parts)
    )
    monkeypatch.setattr("fedtalk_ray.comparison.compare.load_instruments", lambda _: (Instruments(), []))
    monkeypatch.setattr("fedtalk_ray.comparison.compare.finish", lambda _: None)
    runs = [replace(run, method=method, seed=seed) for seed in (0, 1) for method in ("good", "bad", "saved")]
    monkeypatch.setattr("fedtalk_ray.comparison.compare.plan", lambda *_: runs)
    compare(wanted)
    # Both names are one model's, whose figures are measured once.
    assert sorted(map(str, asked)) == sorted([run.config.run] * 2)
    with open(tmp_path / "table.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "unseen.loss"]
    truth = real(run.config.run, run.config.shards, ["ann"])["unseen"]["loss"]
    assert [(row["method"], row["seeds"]) for row in rows] == [
        (name, "2") for name in ("before", "other", "good", "bad", "saved")
    ]
    assert [float(row["mean"]) for row in rows] == [pytest.approx(truth)] * 5
    assert {row["difference"] for row in rows} == {"", "0.0"}
    compare(wanted)
    assert len(asked) == 2, "what was measured is kept"


def test_a_failure_is_one_line_and_a_fault_keeps_its_traceback(run: Planned, tmp_path: Path) -> None:
    assert why(RunError("two\nlines"), run, tmp_path) == "two lines"
    assert not list(tmp_path.iterdir())
    try:
        {}["gone"]
    except KeyError as error:
        line = why(error, run, tmp_path)
    assert line == f"KeyError: 'gone' (see {tmp_path / 'failures.log'})"
    log = (tmp_path / "failures.log").read_text()
    assert log.startswith("all/good/seed0\n") and '{}["gone"]' in log
