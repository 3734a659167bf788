"""The sections of a run's report: each from the run's records to plots with captions, or to a sentence that says why
there is none."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from matplotlib.axes import Axes

from fedtalk_ray.privacy.publication import simulation
from fedtalk_ray.report.facts import Facts, duration, size, unit_of, whose_loss
from fedtalk_ray.report.metrics import AUTOENCODER, COPY, SEEN, jitter_of_clips
from fedtalk_ray.report.plots import MOST_LINES, Curve, draw_bars, draw_dots, draw_lines, picture

REST = "the rest"
PARTS = {"training": ("train",), "evaluation": ("evaluate",), "samples": ("sample",)}
"""What a plot of seconds shows -> the stages of a record that it adds up; every other stage is summing."""

ATTACK_COLUMNS = ("attack", "what the attacker gets", "value", "95% interval", "by chance", "claim")


@dataclass(frozen=True)
class Plot:
    """draw: draws it on a panel."""

    title: str
    caption: str
    draw: Callable[[Axes], None]

    @property
    def image(self) -> str:
        """A data URI."""
        return picture(self.draw)


@dataclass
class Section:
    """rows: cells of a table under `columns`, plain text."""

    title: str
    sentences: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def plot(self, title: str, caption: str, draw: Callable[..., None], *data: Any, **more: Any) -> None:
        self.plots.append(Plot(title, caption, partial(_drawn, draw, data, more)))


def _drawn(draw: Callable[..., None], data: tuple[Any, ...], more: dict[str, Any], panel: Axes) -> None:
    draw(panel, *data, **more)


def convergence(run: Facts) -> Section:
    section, whose = Section("Convergence"), whose_loss(run.config)
    losses = run.series("held_out_loss")
    if losses:
        (first, before), (last, after) = losses[0], losses[-1]
        meaning = f"The diffusion loss on {whose}; lower is better. "
        if len(losses) > 1:
            caption = f"{meaning}{before:.3f} after round {first}, {after:.3f} after round {last}."
            section.plot("Held-out loss by round", caption, draw_lines, {"held-out": losses}, "diffusion loss")
        else:
            section.sentences.append(f"{meaning}{after:.3f} after round {last}, measured once and so no curve.")
    else:
        section.sentences.append("Held-out loss: no round that is recorded measured it.")
    if lips := run.series("lip_agreement"):
        caption = (
            "Of people whom nobody trains on: how far the mouth opens, against how far it truly did, as a correlation "
            f"while somebody speaks. Higher is better. {lips[-1][1]:.2f} after round {lips[-1][0]}."
        )
        section.plot("Lips by round", caption, draw_lines, {"lips": lips}, "correlation")
    terms: dict[str, list[tuple[int, float]]] = {}
    for at, values in run.series("loss"):
        for name, value in values.items():
            terms.setdefault(name, []).append((at, value))
    # A term whose weight is 0 is not computed.
    shown = {name: curve for name, curve in terms.items() if any(value != 0 for _, value in curve)}
    if shown:
        caption = (
            "Means over the round's clients while they trained, of whatever the round's phase minimises; total is the "
            "weighted sum of the terms. Every round draws other windows and noise, so these curves wander; the "
            "held-out loss compares rounds."
        )
        section.plot("Training loss and its terms by round", caption, draw_lines, shown, "loss")
    else:
        section.sentences.append(f"Training losses: {_no_reports(run)}")
    return section


def weights(run: Facts) -> Section:
    """Every client's share of the sum, where it is told."""
    section = Section("Aggregation weights")
    if run.config.aggregation == "secure":
        section.sentences.append(
            "Hidden by design: under secure aggregation each client computes its own weight, and neither the server "
            "nor this report learns it."
        )
        return section
    shares: dict[str, list[tuple[int, float]]] = {}
    scores: dict[str, list[tuple[int, float]]] = {}
    sizes = set()
    for at, reports in run.series("clients"):
        sizes.add(len(reports))
        for report in sorted(reports, key=lambda report: report["client"]):
            shares.setdefault(report["client"], []).append((at, 100 * report["share"]))
            if report["score"] is not None:
                scores.setdefault(report["client"], []).append((at, report["score"]))
    if not shares:
        section.sentences.append(_no_reports(run))
        return section
    levels = {"equal shares": 100 / next(iter(sizes))} if len(sizes) == 1 else {}
    caption = f"How much each client's update counts in the round's average, in percent.{_many(shares)}"
    section.plot("Share of the sum by round", caption, draw_lines, shares, "share, %", levels=levels, from_zero=True)
    if scores:
        alpha = run.config.strategy.alpha
        caption = (
            f"{alpha:g} IDSim + {1 - alpha:g} TempStab, which each client measures on its own held-out windows. Higher "
            f"counts more. The axis does not begin at 0.{_many(scores)}"
        )
        section.plot("Reliability score by round", caption, draw_lines, scores, "score, 0 to 1")
    else:
        section.sentences.append(f"Strategy {run.config.strategy.name} asks for no reliability score.")
    return section


def jitter(metrics: dict[str, Any] | None, command: str) -> Section:
    """command: the one that makes a metrics.json."""
    section = Section("Temporal jitter")
    found = jitter_of_clips(metrics) if metrics else {}
    if metrics and SEEN in metrics["clips"].keys() - {clip["group"] for clip in metrics["per_clip"]}:
        section.sentences.append("Of clients' own clips only means are told, in the table above.")
    elif not found:
        why = "No metrics.json was given" if metrics is None else "The metrics.json tells no clip's jitter"
        section.sentences.append(f"{why}: {command} measures it.")
    if not found:
        return section
    count = sum(len(next(iter(rows.values()))) for rows in found.values())
    caption = (
        f"A dot for each of {count} clips and each row. At 1 a clip moves as much as the real one, below it is too "
        f"still, above it moves more or flickers. {COPY} is a still (0), {AUTOENCODER} the best that it can do."
    )
    axis = "mean change from frame to frame / the truth's"
    section.plot("How much each clip moves, against its truth", caption, draw_dots, found, axis, 1.0)
    return section


def privacy(run: Facts) -> Section:
    section, settings = Section("Privacy spent"), run.config.privacy
    pointer = f"What the two views mean: docs/privacy.md. The ledger: fedtalk privacy show {run.folder.path}"
    if settings.mechanism == "none":
        section.sentences += [
            "No noise was added, so epsilon is infinite in both views, and nothing is promised about what the model "
            "tells of a client.",
            pointer,
        ]
        return section
    release, server = run.series("epsilon"), run.series("epsilon_server")
    if release:
        caption = (
            f"At delta {settings.delta:g}; lower promises more. Release view: against whoever sees the models and not "
            "the cohorts. Server view: against whoever knows the cohorts"
        )
        caption += "." if server else "; not told by round, as it is that of whoever was drawn most often."
        levels = {}
        if settings.epsilon is not None:
            levels = {f"budget {settings.epsilon:g}": settings.epsilon}
            caption += f" The budget holds the {settings.view} view; the other one may lie above it."
        if note := simulation(settings, " "):
            caption += f"{note}."
        curves = ({"server view": server} if server else {}) | {"release view": release}
        section.plot("Epsilon spent by round", caption, draw_lines, curves, "epsilon", levels=levels, from_zero=True)
    else:
        section.sentences.append("The rounds' records hold no epsilon: the ledger alone does.")
    section.sentences.append(_ledger_line(run))
    if clipped := [(at, 100 * value) for at, value in run.series("clip_fraction")]:
        bound = run.series("clip_norm")
        last = f" ({bound[-1][1]:.3g} in the last round)" if bound else ""
        caption = f"The share of the round's clients whose weighted update was longer than the clip norm{last}."
        section.plot(
            "Clipped updates by round", caption, draw_lines, {"clipped": clipped}, "clipped, %", from_zero=True
        )
    else:
        section.sentences.append("How many updates were clipped is not known: nobody but the client itself learns it.")
    section.sentences.append(pointer)
    return section


def attacks(run: Facts, found: dict[str, Any] | None) -> Section:
    """found: what audit.json holds."""
    section = Section("Attacks")
    if found is None:
        section.sentences.append(f"Not attacked yet: fedtalk audit {run.folder.path} does it.")
        return section
    if found["failures"]:
        section.sentences += [f"BROKEN PROMISE: {line}" for line in found["failures"]]
    elif found["mode"] == "no privacy":
        section.sentences.append("This run promises nothing; the attacks show what it would have to hide.")
    else:
        section.sentences.append("No promise was found broken.")
    if found["round"] != run.last:
        section.sentences.append(f"The attacks were on round {found['round']}, and the run has gone on to {run.last}.")
    section.sentences.append(
        f"What attackers got from this run ({found['mode']}), each with what its attacker is assumed to hold: "
        "docs/privacy.md says what that is, and audit.json repeats it."
    )
    section.columns = ATTACK_COLUMNS
    section.rows = [
        (outcome.get("title", outcome["attack"]), figure["name"], *attack_cells(figure))
        for outcome in found["outcomes"]
        for figure in outcome["figures"]
    ]
    return section


def attack_cells(figure: dict[str, Any]) -> tuple[str, str, str, str]:
    """value, interval, chance, claim; empty where there is none."""
    value = "no number" if figure["value"] is None else f"{figure['value']:.3g}"
    known = figure["low"] is not None and figure["high"] is not None
    bounds = f"{figure['low']:.2g} to {figure['high']:.2g}" if known else ""
    chance, claim = ("" if figure[name] is None else f"{figure[name]:.3g}" for name in ("chance", "claim"))
    return value, bounds, chance, claim


def communication(run: Facts) -> Section:
    section = Section("Communication and time")
    if sent := run.series("bytes_up"):
        unit, name = unit_of(max(value for _, value in sent))
        how = (
            "the masked vectors that arrived, 4 bytes a parameter. Keys and shares of the protocol come on top and are "
            "not counted."
            if run.config.aggregation == "secure"
            else "one weighted sum from each slot, 4 bytes a parameter, however many clients the slot stands for. "
            "Devices of their own would each send as much as one slot does here."
        )
        caption = f"{size(sum(value for _, value in sent))} in all: {how}"
        heights = {"sent": [value / unit for _, value in sent]}
        section.plot("Sent up by round", caption, draw_bars, [at for at, _ in sent], heights, f"sent up, {name}")
    seen = {record["round"]: known for record in run.history if (known := _attendance(record)) is not None}
    if seen:
        asked, counted = ([pair[place] for pair in seen.values()] for place in (0, 1))
        refused: Counter[str] = Counter()
        for _, reasons in run.series("refused"):
            refused.update(reasons)
        caption = f"{sum(counted)} of {sum(asked)} updates that were asked for are in a sum."
        if refused:
            caption += f" Missing: {', '.join(f'{count} {why}' for why, count in sorted(refused.items()))}."
        missing = [most - came for most, came in zip(asked, counted, strict=True)]
        shares = {"in the sum": counted, "missing": missing}
        section.plot("Clients asked, and in the sum, by round", caption, draw_bars, list(seen), shares, "clients")
    else:
        section.sentences.append("The records do not tell how many clients took part.")
    if times := run.series("seconds"):
        parts, total = _seconds(run), Counter[str]()
        for _, stages in run.series("stage_seconds"):
            total.update(stages)
        seconds = ", ".join(f"{stage} {duration(value)}" for stage, value in total.items())
        rest = f" {REST.capitalize()}: {duration(sum(parts[REST]))}." if REST in parts else ""
        caption = f"In all: {seconds}.{rest}" if total else "Only whole rounds were timed."
        section.plot("Seconds by round", caption, draw_bars, [at for at, _ in times], parts, "seconds")
    return section


def _many(curves: Mapping[str, Curve]) -> str:
    if len(curves) <= MOST_LINES:
        return ""
    return f" {len(curves)} clients in all: their range in each round, darker the middle half, and the median."


def _no_reports(run: Facts) -> str:
    if run.config.aggregation == "secure":
        return "Not known: under secure aggregation clients report none."
    if run.config.privacy.mechanism != "none":
        return "Not known: where the server adds noise, clients report nothing."
    return "Not known: no recorded round tells."


def _ledger_line(run: Facts) -> str:
    if run.spent is None:
        return "There is no ledger beside the checkpoints; the figures are those of the rounds' records."
    line = f"The ledger: epsilon {run.spent.release:.3f} (release) and {run.spent.server:.3f} (server)"
    if run.config.privacy.hides_cohorts:
        line += "."
    else:
        charged, most = run.spent.rounds, run.spent.participations
        line += f"; {charged} exchanges are charged, and no client was in more than {most}."
    recorded = run.series("epsilon")
    if recorded and not math.isclose(recorded[-1][1], run.spent.release, rel_tol=1e-6):
        line += " That is not what the last record says: the ledger also holds exchanges whose round was lost."
    note = simulation(run.config.privacy, " ")
    return f"{line}{note}." if note else line


def _attendance(record: dict[str, Any]) -> tuple[int, int] | None:
    """How many clients were asked, and how many are in the sum; None where the record does not tell."""
    counts, reports = record.get("counts", {}), record.get("clients", ())
    counted = record.get("survivors", counts.get("trained", len(reports) or None))
    if counted is None:
        return None
    return counts.get("cohort", len(record.get("cohort", ())) or counted), counted


def _seconds(run: Facts) -> dict[str, list[float]]:
    """part -> seconds of each round; parts that took no time are left out."""
    parts: dict[str, list[float]] = {}
    of_stage = {stage: part for part, stages in PARTS.items() for stage in stages}
    for record in run.history:
        if record.get("seconds") is None:
            continue
        found = dict.fromkeys(("training", "summing", "evaluation", "samples"), 0.0)
        for stage, value in record.get("stage_seconds", {}).items():
            found[of_stage.get(stage, "summing")] += value
        found[REST] = max(0.0, record["seconds"] - sum(found.values()))
        for part, value in found.items():
            parts.setdefault(part, []).append(value)
    return {part: values for part, values in parts.items() if any(values)}
