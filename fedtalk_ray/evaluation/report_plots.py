"""The plots of a run's report: each a function from plain data to SVG text (`report_svg`).

The name of a plot is unique in its page, its label says what it shows to those who do not see it. Rounds are counted
from 1. A value that is not finite leaves a gap.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedtalk_ray.evaluation.plots import COLOURS
from fedtalk_ray.evaluation.report_svg import INK, draw_svg, label_ends, short

LINES = (*COLOURS[:6], INK)

Curve = Sequence[tuple[int, float]]
"""(round, value), by round."""

MOST_LINES = 7
"""More lines than this are drawn as a band: nobody can follow them."""

MOST_MARKED = 40
MOST_BARS = 60
"""Rounds that are still drawn as marks and bars of their own; more become one shape."""


def lines_by_round(
    name: str,
    label: str,
    curves: Mapping[str, Curve],
    axis: str,
    levels: Mapping[str, float] | None = None,
    from_zero: bool = False,
) -> str:
    """One line for each curve, at most `MOST_LINES`, named beside its end. axis: the vertical one's label, with its
    unit. levels: name -> value of dashed horizontal lines. from_zero: the axis begins there."""

    def draw(panel: Axes) -> None:
        ends = []
        for index, (curve, points) in enumerate(curves.items()):
            rounds, values = [at for at, _ in points], [value for _, value in points]
            _line(panel, rounds, values, LINES[index])
            ends.append((curve, values[-1], LINES[index]))
        if not from_zero:
            _not_too_close(panel)
        for level, value in (levels or {}).items():
            panel.axhline(value, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            ends.append((level, value, INK))
        _by_round(panel, axis, from_zero)
        if len(ends) > 1:
            label_ends(panel, [end for end in ends if np.isfinite(end[1])])

    return draw_svg(name, label, draw)


def _not_too_close(panel: Axes) -> None:
    """Shows at least a twentieth of the value: a change of a thousandth must not look like a plunge."""
    low, high = panel.get_ylim()
    missing = 0.05 * abs(low + high) / 2 - (high - low)
    if missing > 0:
        panel.set_ylim(low - missing / 2, high + missing / 2)


def band_by_round(
    name: str, label: str, values: Mapping[int, Sequence[float]], axis: str, from_zero: bool = False
) -> str:
    """Many clients' values by round: from the smallest to the largest, the middle half, and the median."""

    def draw(panel: Axes) -> None:
        rounds = list(values)
        cuts = np.array([np.quantile(list(values[at]), (0, 0.25, 0.5, 0.75, 1)) for at in rounds]).T
        panel.fill_between(rounds, cuts[0], cuts[4], color=COLOURS[0], alpha=0.18, linewidth=0)
        panel.fill_between(rounds, cuts[1], cuts[3], color=COLOURS[0], alpha=0.35, linewidth=0)
        _line(panel, rounds, cuts[2].tolist(), COLOURS[0])
        _by_round(panel, axis, from_zero)
        names = ("smallest", "quarter", "median", "three quarters", "largest")
        label_ends(panel, [(text, cut[-1], COLOURS[0]) for text, cut in zip(names, cuts, strict=True)])

    return draw_svg(name, label, draw)


def stacks_by_round(
    name: str, label: str, rounds: Sequence[int], parts: Mapping[str, Sequence[float]], axis: str
) -> str:
    """Bars of parts on top of each other, one value a round each; a legend where there is more than one part."""

    def draw(panel: Axes) -> None:
        below = np.zeros(len(rounds))
        for index, (part, heights) in enumerate(parts.items()):
            _columns(panel, rounds, below, below + heights, COLOURS[index], 1.0, part)
            below = below + heights
        _by_round(panel, axis, from_zero=True)
        if len(parts) > 1:
            _legend(panel)

    return draw_svg(name, label, draw)


def attendance_by_round(
    name: str, label: str, rounds: Sequence[int], asked: Sequence[int], counted: Sequence[int]
) -> str:
    """How many clients were asked, pale, and how many of their updates are in the sum, in front."""

    def draw(panel: Axes) -> None:
        nothing = np.zeros(len(rounds))
        _columns(panel, rounds, nothing, np.array(asked, float), INK, 0.18, "asked (cohort)")
        _columns(panel, rounds, nothing, np.array(counted, float), COLOURS[2], 1.0, "in the sum")
        lost = [at for at, count in zip(rounds, counted, strict=True) if not count]
        if lost:
            panel.plot(lost, [0] * len(lost), "x", color=COLOURS[1], clip_on=False, label="no sum")
        _by_round(panel, "clients", from_zero=True)
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(panel)

    return draw_svg(name, label, draw)


def ratios_by_row(
    name: str, label: str, ratios: Mapping[str, Mapping[str, Sequence[float]]], axis: str, truth: float
) -> str:
    """A dot for each clip, a line of dots for each row, a colour for each group, and the truth as a vertical line.

    ratios: group -> row -> one value a clip.
    """
    rows = list(dict.fromkeys(row for by_row in ratios.values() for row in by_row))

    def draw(panel: Axes) -> None:
        panel.axvline(truth, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="truth")
        for index, (group, by_row) in enumerate(ratios.items()):
            lane = (index - (len(ratios) - 1) / 2) * 0.3
            for row, values in by_row.items():
                places = [rows.index(row) + lane + step for step in _apart(len(values))]
                first = row == next(iter(by_row))
                panel.plot(
                    values,
                    places,
                    "os^"[index % 3],
                    color=COLOURS[index],
                    markersize=5,
                    markeredgewidth=0,
                    clip_on=False,
                    label=group if first else None,
                )
        panel.set_yticks(range(len(rows)), [short(row) for row in rows])
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.set_xlim(left=0)
        panel.margins(x=0.05)
        panel.set_xlabel(axis)
        panel.grid(axis="y", visible=False)
        _legend(panel)

    return draw_svg(name, label, draw)


def _line(panel: Axes, rounds: Sequence[int], values: Sequence[float], colour: str) -> None:
    marker = "o" if len(rounds) <= MOST_MARKED else None
    panel.plot(rounds, values, color=colour, linewidth=1.8, marker=marker, markersize=3.5)


def _columns(
    panel: Axes, rounds: Sequence[int], low: np.ndarray, high: np.ndarray, colour: str, alpha: float, name: str
) -> None:
    style: dict[str, Any] = {"color": colour, "alpha": alpha, "linewidth": 0, "label": name}
    if len(rounds) <= MOST_BARS:
        panel.bar(rounds, high - low, 0.7, bottom=low, **style)
    else:
        panel.fill_between(rounds, low, high, step="mid", **style)


def _by_round(panel: Axes, axis: str, from_zero: bool = False) -> None:
    panel.set(xlabel="round", ylabel=axis)
    if from_zero:
        panel.set_ylim(bottom=0)
    if from_zero and panel.lines:
        # Lines close together at the top: their names need room on both sides.
        panel.set_ylim(top=1.25 * panel.get_ylim()[1])
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.grid(axis="x", visible=False)


def _legend(panel: Axes) -> None:
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, columnspacing=1.2, handlelength=1, borderpad=0)


def _apart(count: int) -> list[float]:
    """Small steps to both sides, always the same ones, so that dots of equal values do not hide each other."""
    return [0.0] if count == 1 else np.linspace(-0.1, 0.1, count).tolist()
