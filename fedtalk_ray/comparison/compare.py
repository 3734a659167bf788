"""Methods x seeds under one yardstick: `fedtalk compare EXPERIMENT.yaml`.

    OUT/runs/<population>/<method>/seed<k>/   the run, as `fedtalk train` leaves it, and figures.json
    OUT/table.csv  table.md  table.tex        mean and 95% interval, and paired differences to the baseline
    OUT/plots/held_out_loss.png  lip_agreement.png  bars.png
    OUT/results.json                          every run's figures, and the failures
    OUT/models/                               the figures of models that no run made

Started again, it goes on: what is complete stays, an interrupted run is resumed, and a failed one is tried again. Of a
run that is complete config.yaml, history.jsonl and figures.json are enough: the rest may be removed, or stay behind on
another machine.
"""

import hashlib
import json
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedtalk_ray.comparison.experiment import TRAINING_METRIC, Experiment, Planned, plan
from fedtalk_ray.comparison.plots import plot_bars, plot_curves
from fedtalk_ray.comparison.tables import (
    entries_of,
    tables_of,
    won_back_table,
    write_csv,
    write_latex,
    write_markdown,
)
from fedtalk_ray.errors import RunError, UserError
from fedtalk_ray.evaluation.evaluate import ROWS, Instruments, evaluate_run, load_instruments
from fedtalk_ray.evaluation.statistics import WonBack, won_back
from fedtalk_ray.evaluation.window_figures import MEASURES, window_figures
from fedtalk_ray.federation.privacy_plan import with_noise
from fedtalk_ray.model.released import open_model
from fedtalk_ray.outputs import new_file
from fedtalk_ray.progress import progress
from fedtalk_ray.rounds import train
from fedtalk_ray.runs.checkpoints import config_fingerprint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import population_of

RESULTS = "results.json"
MODELS = "models"
CURVES = {
    TRAINING_METRIC: "held-out loss of the clients' own val clips",
    "lip_agreement": "lip correlation of unseen people",
}
"""What rounds measure of the model as it becomes, in their history, and what it is called beside a plot."""
FAILURES = "failures.log"


def compare(experiment: Experiment, settings: list[str] | None = None) -> Path:
    """Brings every run to its end, measures it, and writes tables and plots; returns the output folder.

    settings: `key=value` over the experiment's base. The experiment's models are measured first. A run that fails is
    reported in one line, and the others go on; at the end that raises `RunError`. Tables are written after every run,
    so that a long comparison can be watched.
    """
    runs = plan(experiment, settings)
    out = Path(experiment.out)
    instruments, missing = load_instruments(experiment.judge) if experiment.videos() else (None, [])
    for line in missing:
        print(line, file=sys.stderr)
    if instruments is not None:
        instruments = instruments.needed(experiment.video_figures())
    finished = as_they_are(runs, experiment, instruments)
    failed: list[dict[str, Any]] = []
    for run in progress(runs, len(runs), "compare"):
        name = {"population": run.population, "method": run.method, "seed": run.seed, "run": run.config.run}
        try:
            finish(run)
            finished.append(name | measured(run, experiment, instruments))
        except Exception as error:  # hours of other runs must not be lost to what went wrong in one
            reason = why(error, run, out)
            failed.append(name | {"reason": reason})
            print(f"fedtalk: {run.label()} failed: {reason}", file=sys.stderr)
        report(experiment, finished, failed)
    if failed:
        labels = ", ".join("{population}/{method}/seed{seed}".format_map(each) for each in failed)
        raise RunError(
            f"{len(failed)} of {len(runs)} runs failed ({labels}); the others are in {out}, and the same command tries "
            "these again"
        )
    return out


def why(error: Exception, run: Planned, out: Path) -> str:
    """One line. What is no user's to mend keeps its traceback in OUT/failures.log."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    out.mkdir(parents=True, exist_ok=True)
    with open(out / FAILURES, "a") as log:
        log.write(f"{run.label()}\n{''.join(traceback.format_exception(error))}\n")
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first} (see {out / FAILURES})"


def finish(planned: Planned) -> None:
    """Trains, or goes on with, or leaves alone one run. Raises `RunError` for one with other settings."""
    clients = population_of(planned.config, load_manifest(planned.config.shards))
    config = with_noise(planned.config, len(clients))
    run = RunFolder(Path(config.run))
    if measured_before(run, config):
        return
    checkpoint, done = run.checkpoint(config), run.recorded()
    if done > config.all_rounds:
        raise RunError(
            f"run {run.path} has {done} rounds, and {config.all_rounds} are asked for; give another `out` folder"
        )
    if checkpoint is None or done < config.all_rounds or not run.has_model():
        train(config, resume=run.exists())


def measured_before(run: RunFolder, config: TrainConfig) -> bool:
    """Whether a run went to its end and was measured, though its weights are gone. Raises `RunError` for one with other
    settings."""
    rounds = read_figures(run.figures).get("how", {}).get("rounds")
    if rounds != config.all_rounds or not run.exists() or run.has_model():
        return False
    if config_fingerprint(run.config()) != config_fingerprint(config):
        raise RunError(f"run {run.path} was made with other settings; give another `out` folder")
    return run.recorded() == rounds


def as_they_are(runs: list[Planned], experiment: Experiment, instruments: Instruments | None) -> list[dict[str, Any]]:
    """The experiment's models, measured beside each population and seed on what its runs are measured on.

    Before anything is trained: a model that is not there, or that the shards do not fit, is one line at once.
    """
    rows = []
    for run in {(run.population, run.seed): run for run in runs}.values():
        for name, source in experiment.models.items():
            model = open_model(source or run.config.pretrained or "")
            weights = hashlib.sha256()
            for file in sorted(model.pipeline.rglob("*")):
                if file.suffix in (".safetensors", ".pth", ".bin"):
                    weights.update(file.read_bytes())
            key = repr((weights.hexdigest(), run.evaluation_shards, run.excluded))
            place = Path(experiment.out) / MODELS / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
            detail = measure_model(model.path, None, run, experiment, instruments, place)
            figures = {metric: figure(metric, detail, {}) for metric in experiment.metrics if metric not in CURVES}
            row = {"population": run.population, "method": name, "seed": run.seed, "run": str(model.path)}
            rows.append(row | {"figures": figures, "curves": {}, "excluded": list(run.excluded), "detail": detail})
    return rows


def measured(planned: Planned, experiment: Experiment, instruments: Instruments | None) -> dict[str, Any]:
    """{"figures": {metric: value}, "curves": {what: {round: value}}, "detail": what was measured} of a finished run.

    Measuring is not repeated while it would measure the same: RUN/figures.json says how it was done.
    """
    run = RunFolder(Path(planned.config.run))
    detail = measure_model(run.path, planned.config.all_rounds, planned, experiment, instruments, run.figures)
    history = run.history()
    curves = {name: {each["round"]: each[name] for each in history if name in each} for name in CURVES}
    figures = {metric: figure(metric, detail, curves[TRAINING_METRIC]) for metric in experiment.metrics}
    return {"figures": figures, "curves": curves, "excluded": list(planned.excluded), "detail": detail}


def measure_model(
    model: str | Path,
    rounds: int | None,
    planned: Planned,
    experiment: Experiment,
    instruments: Instruments | None,
    place: Path,
) -> dict[str, Any]:
    """What the experiment's metrics need of a model, by kind. place: where it is kept with how it was measured."""
    # Distances between sets of pictures are taken from all rows.
    rows = ROWS if instruments and instruments.frechet else experiment.video_rows()
    how: dict[str, Any] = {
        "rounds": rounds,
        "shards": planned.evaluation_shards,
        "excluded": list(planned.excluded),
        "measures": list(MEASURES) if experiment.windows() else [],
        "personal": experiment.personal,
        "judge": experiment.judge,
        "videos": experiment.videos(),
        "instruments": instruments.names() if instruments else [],
        "rows": list(rows),
        "clips": experiment.clips,
    }
    kept = read_figures(place)
    if kept.get("how") != how:
        kept = {"how": how, "windows": {}}
        if experiment.windows():
            kept["windows"] = window_figures(model, how["shards"], planned.excluded, experiment.personal)
        if experiment.videos():
            result = evaluate_run(
                model,
                how["shards"],
                "test",
                instruments,
                personal=experiment.personal,
                limit=experiment.clips,
                excluded=planned.excluded,
                rows=rows,
            )
            kept["videos"] = result["groups"]
        with new_file(place) as partial:
            partial.write_text(json.dumps(kept, indent=1))
    return {key: kept[key] for key in ("windows", "videos") if key in kept}


def read_figures(path: Path) -> dict[str, Any]:
    """RUN/figures.json, empty where there is none. Raises `RunError` for a damaged one."""
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it, and the run is measured again") from error


def figure(metric: str, detail: Mapping[str, Any], curve: Mapping[int, float]) -> float:
    """One metric by its name in `Experiment.metrics`. Raises `RunError` when nothing of that name was measured."""
    if metric == TRAINING_METRIC:
        if not curve:
            raise RunError(f"metric {metric!r} was not measured in any round; take another one, or check the history")
        return curve[max(curve)]
    tree: Any = detail["videos" if metric.count(".") == 2 else "windows"]
    for part in metric.split("."):
        if part not in tree:
            raise RunError(f"metric {metric!r}: {part!r} was not measured; there are {', '.join(tree)}")
        tree = tree[part]
    if not isinstance(tree, (int, float)):
        raise RunError(f"metric {metric!r} is {tree!r}, no number; take another one")
    return float(tree)


def report(experiment: Experiment, finished: list[dict[str, Any]], failed: list[dict[str, Any]]) -> None:
    """Writes results.json, and tables and plots of the runs that are finished."""
    out, metrics = Path(experiment.out), experiment.metrics
    baseline = experiment.baseline or next(iter(experiment.methods))
    figures: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    curves: dict[str, dict[str, dict[str, dict[int, dict[int, float]]]]] = {name: {} for name in CURVES}
    for population in experiment.populations:
        for method in (*experiment.models, *experiment.methods):
            runs = [each for each in finished if (each["population"], each["method"]) == (population, method)]
            if runs:
                by_metric = {
                    metric: {run["seed"]: run["figures"][metric] for run in runs if metric in run["figures"]}
                    for metric in metrics
                }
                figures.setdefault(population, {})[method] = by_metric
            for name, drawn in curves.items():
                if seeds := {run["seed"]: run["curves"][name] for run in runs if run["curves"].get(name)}:
                    drawn.setdefault(population, {})[method] = seeds
    entries = entries_of(figures, metrics, baseline)
    shares = shares_won_back(experiment, figures)
    results = {
        "experiment": experiment.model_dump(mode="json"),
        "baseline": baseline,
        "runs": finished,
        "failed": failed,
        "table": [asdict(entry) for entry in entries],
        "won_back": {where: {name: asdict(share) for name, share in each.items()} for where, each in shares.items()},
    }
    with new_file(out / RESULTS) as place:
        place.write_text(json.dumps(results, indent=1))
    if not entries:
        return
    tables = tables_of(entries, metrics, baseline, len(experiment.seeds), experiment.name)
    if experiment.won_back and shares:
        names = experiment.won_back
        tables.append(won_back_table(shares, (names.clean, names.harmed, names.rescued)))
    write_csv(entries, baseline, out / "table.csv")
    write_markdown(tables, out / "table.md")
    write_latex(tables, out / "table.tex")
    for name, drawn in curves.items():
        if drawn:
            plot_curves(drawn, experiment.name, CURVES[name], out / "plots" / f"{name}.png")
    if main := [entry for entry in entries if entry.metric == metrics[0]]:
        plot_bars(main, metrics[0], baseline, experiment.name, out / "plots" / "bars.png")


def shares_won_back(
    experiment: Experiment, figures: Mapping[str, Mapping[str, Mapping[str, Mapping[int, float]]]]
) -> dict[str, dict[str, WonBack]]:
    """population -> metric -> share, where the experiment names three methods and all three have runs of one seed."""
    shares: dict[str, dict[str, WonBack]] = {}
    names = experiment.won_back
    for population, methods in figures.items() if names else ():
        assert names is not None
        if not {names.clean, names.harmed, names.rescued} <= set(methods):
            continue
        for metric in experiment.metrics:
            share = won_back(
                methods[names.clean][metric], methods[names.harmed][metric], methods[names.rescued][metric]
            )
            if share is not None:
                shares.setdefault(population, {})[metric] = share
    return shares
