"""The sections of a run's report that hold plots: each from the run's records to plots with captions, or to a sentence
that says why there is none."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedtalk_ray.evaluation.report_metrics import AUTOENCODER, COPY, jitter_of_clips
from fedtalk_ray.evaluation.report_plots import (
    MOST_LINES,
    attendance_by_round,
    band_by_round,
    lines_by_round,
    ratios_by_row,
    stacks_by_round,
)
from fedtalk_ray.evaluation.report_run import Run, duration, epsilons, size, unit_of, whose_loss
from fedtalk_ray.privacy.protocol import STAGES

REST = "the rest"
PARTS: dict[str, tuple[str, ...]] = {
    "training": ("train",),
    "summing": ("aggregate", *STAGES),
    "evaluation": ("evaluate",),
    "samples": ("sample",),
}
"""What a plot of seconds shows -> the stages of a record that it adds up."""


@dataclass(frozen=True)
class Plot:
    """title, caption: plain text. svg: an element."""

    title: str
    svg: str
    caption: str


@dataclass
class Section:
    """rows: cells of a table under `columns`, plain text."""

    title: str
    sentences: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)


def convergence(run: Run) -> Section:
    section = Section("Convergence")
    losses = run.series("held_out_loss")
    whose = whose_loss(run.config)
    if len(losses) > 1:
        svg = lines_by_round("held-out", "Held-out loss by round", {"held-out": losses}, "diffusion loss")
        first, last = losses[0], losses[-1]
        section.plots.append(
            Plot(
                "Held-out loss by round",
                svg,
                f"The diffusion loss on {whose}; lower is better. {first[1]:.3f} after round {first[0]}, {last[1]:.3f} "
                f"after round {last[0]}.",
            )
        )
    elif losses:
        at, value = losses[0]
        section.sentences.append(
            f"Held-out loss: {value:.3f} after round {at}, measured once and so no curve, on {whose}. Lower is better."
        )
    else:
        section.sentences.append("Held-out loss: no round that is recorded measured it.")
    terms: dict[str, list[tuple[int, float]]] = {}
    for at, losses_of_round in run.series_of("loss"):
        for name, value in losses_of_round.items():
            terms.setdefault(name, []).append((at, value))
    # A term whose weight is 0 is not computed.
    shown = {name: curve for name, curve in terms.items() if any(value != 0 for _, value in curve)}
    if shown:
        title = "Training loss and its terms by round"
        svg = lines_by_round("training", title, shown, "loss")
        section.plots.append(
            Plot(
                title,
                svg,
                "Means over the round's clients while they trained; total is the weighted sum of the terms. Every "
                "round draws other windows and noise, so these curves wander; the held-out loss compares rounds.",
            )
        )
    else:
        section.sentences.append(f"Training losses: {_no_reports(run)}")
    return section


def weights(run: Run) -> Section:
    """Every client's share of the sum, where it is told."""
    section = Section("Aggregation weights")
    if run.config.aggregation == "secure":
        section.sentences.append(
            "Hidden by design: under secure aggregation each client computes its own weight, and neither the server "
            "nor this report learns it."
        )
        return section
    reports = run.series_of("clients")
    if not reports:
        section.sentences.append(_no_reports(run))
        return section
    section.plots.append(
        _by_client(
            "share",
            "Share of the sum by round",
            "share of the sum, %",
            {at: {report["client"]: 100 * report["share"] for report in clients} for at, clients in reports},
            "How much each client's update counts in the round's average; the shares of a round sum to 100%.",
        )
    )
    scores = {
        at: {report["client"]: report["score"] for report in clients if report["score"] is not None}
        for at, clients in reports
    }
    scores = {at: by_client for at, by_client in scores.items() if by_client}
    if scores:
        alpha = run.config.strategy.alpha
        caption = (
            f"{alpha:g} IDSim + {1 - alpha:g} TempStab, which each client measures on its own held-out windows. Higher "
            "counts more. The axis does not begin at 0."
        )
        section.plots.append(_by_client("score", "Reliability score by round", "score, 0 to 1", scores, caption))
    else:
        section.sentences.append(f"Strategy {run.config.strategy.name} asks for no reliability score.")
    return section


def _by_client(key: str, title: str, axis: str, values: dict[int, dict[str, float]], caption: str) -> Plot:
    """values: round -> client -> value. A line for each client, or a band over many. Shares are seen from zero."""
    share = key == "share"
    clients = sorted({client for by_client in values.values() for client in by_client})
    if len(clients) <= MOST_LINES:
        curves = {
            client: [(at, by_client[client]) for at, by_client in values.items() if client in by_client]
            for client in clients
        }
        sizes = {len(by_client) for by_client in values.values()}
        levels = {"equal": 100 / next(iter(sizes))} if share and len(sizes) == 1 else {}
        svg = lines_by_round(key, title, curves, axis, levels, from_zero=share)
        return Plot(title, svg, caption + " Dashed: equal shares." * bool(levels))
    svg = band_by_round(key, title, {at: list(each.values()) for at, each in values.items()}, axis, from_zero=share)
    told = "from the smallest to the largest of a round, darker the middle half, and the median as a line"
    return Plot(title, svg, f"{caption} {len(clients)} clients in all: {told}.")


def jitter(metrics: dict[str, Any] | None, command: str) -> Section:
    """command: the one that makes a metrics.json."""
    section = Section("Temporal jitter")
    found = jitter_of_clips(metrics) if metrics else {}
    if not found:
        why = "No metrics.json was given" if metrics is None else "The metrics.json tells no clip's jitter"
        section.sentences.append(f"{why}: {command} measures it.")
        return section
    title = "How much each clip moves, against its truth"
    count = sum(len(next(iter(rows.values()))) for rows in found.values())
    section.plots.append(
        Plot(
            title,
            ratios_by_row("jitter", title, found, "mean change from frame to frame / the truth's", 1.0),
            f"A dot for each of {count} clips and each row. At 1 a clip moves as much as the real one, below it is too "
            f"still, above it moves more or flickers. {COPY} is a still (0), {AUTOENCODER} the best that it can do.",
        )
    )
    return section


def privacy(run: Run) -> Section:
    section = Section("Privacy spent")
    settings = run.config.privacy
    pointer = f"What the two views mean: docs/privacy.md. The ledger: fedtalk privacy show {run.folder}"
    if settings.mechanism == "none":
        section.sentences.append(
            "No noise was added, so epsilon is infinite in both views, and nothing is promised about what the model "
            "tells of a client."
        )
    else:
        release, server = run.series("epsilon"), run.series("epsilon_server")
        if release and server:
            title = "Epsilon spent by round"
            levels = {} if settings.epsilon is None else {f"budget {settings.epsilon:g}": settings.epsilon}
            curves = {"server view": server, "release view": release}
            caption = (
                f"At delta {settings.delta:g}; lower promises more. Release view: against whoever sees the models and "
                "not the cohorts. Server view: against whoever knows the cohorts."
            )
            if settings.epsilon is not None:
                caption += f" The budget holds the {settings.view} view; the other one may lie above it."
            if settings.simulated_cohort is not None:
                caption += " SIMULATION: the real clients got less privacy than these figures."
            svg = lines_by_round("epsilon", title, curves, "epsilon", levels, from_zero=True)
            section.plots.append(Plot(title, svg, caption))
        else:
            section.sentences.append("The rounds' records hold no epsilon: the ledger alone does.")
        section.sentences += _ledger_lines(run)
    clipped = [(at, 100 * value) for at, value in run.series("clip_fraction")]
    if clipped:
        title = "Clipped updates by round"
        svg = lines_by_round("clipped", title, {"clipped": clipped}, "clipped, % of clients", from_zero=True)
        bound = run.series("clip_norm")
        caption = "The share of the round's clients whose weighted update was longer than the clip norm"
        section.plots.append(
            Plot(title, svg, f"{caption}{f' ({bound[-1][1]:.3g} in the last round)' if bound else ''}.")
        )
    elif settings.mechanism != "none":
        section.sentences.append("How many updates were clipped is not told: nobody but the client itself learns it.")
    section.sentences.append(pointer)
    return section


def communication(run: Run) -> Section:
    section = Section("Communication and time")
    sent = run.series("bytes_up")
    secure = run.config.aggregation == "secure"
    if sent:
        unit, name = unit_of(max(value for _, value in sent))
        title = "Sent up by round"
        heights = {"sent": [value / unit for _, value in sent]}
        caption = f"{size(sum(value for _, value in sent))} in all: "
        caption += (
            "the masked vectors that arrived, 4 bytes a parameter. Keys and shares of the protocol come on top and are "
            "not counted."
            if secure
            else "one weighted sum from each slot, 4 bytes a parameter, however many clients the slot stands for. "
            "Devices of their own would each send as much as one slot does here."
        )
        svg = stacks_by_round("bytes", title, [at for at, _ in sent], heights, f"sent up, {name}")
        section.plots.append(Plot(title, svg, caption))
    seen = {record["round"]: known for record in run.history if (known := _attendance(record)) is not None}
    if seen:
        title = "Clients asked, and in the sum, by round"
        asked, counted = ([pair[place] for pair in seen.values()] for place in (0, 1))
        caption = f"{sum(counted)} of {sum(asked)} updates that were asked for are in a sum."
        svg = attendance_by_round("clients", title, list(seen), asked, counted)
        section.plots.append(Plot(title, svg, caption + _refusals(run)))
    else:
        section.sentences.append("The records do not tell how many clients took part.")
    times = _seconds(run)
    if times:
        rounds = [at for at, _ in times]
        parts = {part: [stages[part] for _, stages in times] for part in (*PARTS, REST)}
        parts = {part: values for part, values in parts.items() if any(values)}
        title = "Seconds by round" if list(parts) == [REST] else "Seconds by stage and round"
        svg = stacks_by_round("seconds", title, rounds, parts, "seconds")
        section.plots.append(Plot(title, svg, _stage_caption(run, parts)))
    return section


def _no_reports(run: Run) -> str:
    if run.config.aggregation == "secure":
        return "Not known: under secure aggregation clients report none."
    if run.config.privacy.mechanism != "none":
        return "Not known: where the server adds noise, clients report nothing."
    return "Not known: no recorded round tells."


def _ledger_lines(run: Run) -> list[str]:
    if run.spent is None:
        return ["There is no ledger beside the checkpoints; the figures are those of the rounds' records."]
    release, server = epsilons(run)
    assert release is not None and server is not None
    line = (
        f"The ledger: {run.spent.rounds} exchanges charged, epsilon {release:.3f} (release) and {server:.3f} (server); "
        f"no client was in more than {run.spent.participations}."
    )
    recorded = run.series("epsilon")
    if recorded and not math.isclose(recorded[-1][1], release, rel_tol=1e-6):
        line += " That is not what the last record says: the ledger also holds exchanges whose round was lost."
    return [line]


def _attendance(record: dict[str, Any]) -> tuple[int, int] | None:
    """How many clients were asked, and how many are in the sum; None where the record does not tell."""
    counts = record.get("counts", {})
    counted = record.get("survivors", counts.get("trained"))
    reports = record.get("clients")
    if counted is None and reports:
        counted = len(reports)
    if counted is None:
        return None
    return counts.get("cohort", len(record.get("cohort", ())) or counted), counted


def _refusals(run: Run) -> str:
    reasons: dict[str, int] = {}
    for _, refused in run.series_of("refused"):
        for why, count in refused.items():
            reasons[why] = reasons.get(why, 0) + count
    return f" Missing: {', '.join(f'{count} {why}' for why, count in sorted(reasons.items()))}." if reasons else ""


def _seconds(run: Run) -> list[tuple[int, dict[str, float]]]:
    """Seconds of each round by part."""
    found = []
    for at, total in run.series("seconds"):
        stages = next(record for record in run.history if record["round"] == at).get("stage_seconds", {})
        parts = {part: sum(stages.get(stage, 0.0) for stage in names) for part, names in PARTS.items()}
        found.append((at, parts | {REST: max(0.0, total - sum(parts.values()))}))
    return found


def _stage_caption(run: Run, parts: Mapping[str, Sequence[float]]) -> str:
    if list(parts) == [REST]:
        return "Only whole rounds were timed: training, summing, evaluation and samples."
    stages: dict[str, float] = {}
    for _, by_stage in run.series_of("stage_seconds"):
        for stage, value in by_stage.items():
            stages[stage] = stages.get(stage, 0.0) + value
    told = ", ".join(f"{stage} {duration(value)}" for stage, value in stages.items())
    rest = f" {REST.capitalize()}: {duration(sum(parts[REST]))}." if REST in parts else ""
    return f"In all: {told}.{rest}"
