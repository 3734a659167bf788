"""The plots of a run's report: from plain data to a picture that lies in the page.

Rounds are counted from 1. A value that is not finite leaves a gap.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedtalk_ray.plotting import COLOURS

Curve = Sequence[tuple[int, float]]
"""(round, value), by round."""

MOST_LINES = 7
"""More lines than this are drawn as a band: nobody can follow them."""

MOST_BARS = 60
"""Rounds that are still drawn as bars of their own; more become one shape."""


def picture(draw: Callable[[Axes], None]) -> str:
    """What `draw` draws on a panel, as the data URI of a PNG."""
    file = io.BytesIO()
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        panel = figure.subplots()
        panel.grid(alpha=0.2)
        panel.set_axisbelow(True)
        draw(panel)
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def draw_lines(
    panel: Axes,
    curves: Mapping[str, Curve],
    axis: str,
    levels: Mapping[str, float] | None = None,
    from_zero: bool = False,
) -> None:
    """A line for each curve, or over many their range, middle half and median. axis: the vertical one's label, with
    its unit. levels: name -> value of dashed horizontal lines. from_zero: the axis begins there."""
    if len(curves) <= MOST_LINES:
        for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
            rounds, values = zip(*points, strict=True)
            panel.plot(rounds, values, color=colour, marker="o", markersize=3, label=plain(name))
    else:
        by_round: dict[int, list[float]] = {}
        for points in curves.values():
            for at, value in points:
                by_round.setdefault(at, []).append(value)
        rounds = tuple(sorted(by_round))
        cuts = np.array([np.quantile(by_round[at], (0, 0.25, 0.5, 0.75, 1)) for at in rounds]).T
        panel.fill_between(rounds, cuts[0], cuts[4], color=COLOURS[0], alpha=0.18, linewidth=0, label="all")
        panel.fill_between(rounds, cuts[1], cuts[3], color=COLOURS[0], alpha=0.35, linewidth=0, label="middle half")
        panel.plot(rounds, cuts[2], color=COLOURS[0], label="median")
    for name, value in (levels or {}).items():
        panel.axhline(value, color="black", linewidth=1, linestyle="--", label=plain(name))
    if from_zero:
        panel.set_ylim(bottom=0)
    else:
        # A change of a thousandth must not look like a plunge: at least a twentieth of the value is shown.
        low, high = panel.get_ylim()
        missing = max(0.0, 0.05 * abs(low + high) / 2 - (high - low))
        panel.set_ylim(low - missing / 2, high + missing / 2)
    _by_round(panel, axis)


def draw_bars(panel: Axes, rounds: Sequence[int], parts: Mapping[str, Sequence[float]], axis: str) -> None:
    """Bars of parts on top of each other, one value a round each."""
    below = np.zeros(len(rounds))
    for colour, (name, heights) in zip(COLOURS, parts.items(), strict=False):
        top = below + np.asarray(heights, float)
        if len(rounds) <= MOST_BARS:
            panel.bar(rounds, top - below, 0.7, bottom=below, color=colour, label=name)
        else:
            panel.fill_between(rounds, below, top, step="mid", color=colour, linewidth=0, label=name)
        below = top
    panel.set_ylim(bottom=0)
    _by_round(panel, axis)


def draw_dots(panel: Axes, ratios: Mapping[str, Mapping[str, Sequence[float]]], axis: str, truth: float) -> None:
    """A dot for each clip, a lane for each row, a colour for each group, and the truth as a vertical line.

    ratios: group -> row -> one value a clip.
    """
    rows = list(dict.fromkeys(row for by_row in ratios.values() for row in by_row))
    panel.axvline(truth, color="black", linewidth=1, linestyle="--", label="truth")
    for index, (group, by_row) in enumerate(ratios.items()):
        points = [(value, rows.index(row) + 0.2 * index - 0.1) for row, values in by_row.items() for value in values]
        panel.plot(*zip(*points, strict=True), "os^"[index % 3], color=COLOURS[index], alpha=0.6, label=plain(group))
    panel.set_yticks(range(len(rows)), [plain(row) for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlim(left=0)
    panel.set_xlabel(axis)
    panel.legend(fontsize="small")


def plain(name: str, most: int = 24) -> str:
    """A name as a legend shows it: not too long, and never taken for a formula."""
    return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")


def _by_round(panel: Axes, axis: str) -> None:
    panel.set(xlabel="round", ylabel=axis)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(panel.get_legend_handles_labels()[1]) > 1:
        panel.legend(fontsize="small")
