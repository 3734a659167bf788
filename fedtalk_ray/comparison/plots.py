"""The comparison as pictures: what rounds measured, and the main figure with its paired differences."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedtalk_ray.comparison.tables import Entry
from fedtalk_ray.evaluation.statistics import Interval, interval
from fedtalk_ray.plotting import COLOURS, save_figure

Curves = Mapping[str, Mapping[str, Mapping[int, Mapping[int, float]]]]
"""population -> method -> seed -> round -> what was measured of the model after it."""


def plot_curves(curves: Curves, title: str, what: str, path: Path) -> None:
    """One panel a population, one line a method: the mean over seeds, with its 95% band where there are several.

    what: is written along the upward axis.
    """
    figure = Figure(figsize=(1 + 5 * len(curves), 4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for panel, (population, methods) in zip(panels, curves.items(), strict=True):
        for index, (method, seeds) in enumerate(methods.items()):
            band = curve_band(seeds)
            rounds, means = list(band), np.array([each.mean for each in band.values()])
            colour = COLOURS[index % len(COLOURS)]
            panel.plot(rounds, means, color=colour, marker="o", markersize=3, label=f"{method} (n={len(seeds)})")
            if len(seeds) > 1:
                widths = np.array([each.half_width for each in band.values()], float)
                panel.fill_between(rounds, means - widths, means + widths, color=colour, alpha=0.15, linewidth=0)
        panel.set(title=population if len(curves) > 1 else title, xlabel="round")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend(fontsize="small")
    panels[0].set_ylabel(what)
    if len(curves) > 1:
        figure.suptitle(title)
    save_figure(figure, path)


def curve_band(seeds: Mapping[int, Mapping[int, float]]) -> dict[int, Interval]:
    """The interval at every round that all seeds measured; seeds: seed -> round -> value."""
    rounds = sorted(set.intersection(*(set(curve) for curve in seeds.values())))
    return {number: interval([curve[number] for curve in seeds.values()]) for number in rounds}


def plot_bars(entries: Sequence[Entry], metric: str, baseline: str, title: str, path: Path) -> None:
    """Left: the metric by population and method, from zero. Right: paired differences to the baseline.

    entries: those of one metric. Whiskers are 95% intervals; a single seed has none.
    """
    methods = list(dict.fromkeys(entry.method for entry in entries))
    differences = [entry for entry in entries if entry.difference is not None]
    columns = 2 if differences else 1
    figure = Figure(figsize=(1 + 4.5 * columns, 4), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    _bars(panels[0], [(entry, entry.figure) for entry in entries], methods)
    panels[0].set(title=metric)
    panels[0].legend(fontsize="small")
    if differences:
        _bars(panels[1], [(entry, entry.difference) for entry in differences if entry.difference], methods)
        panels[1].set(title=f"difference to {baseline}, paired")
        panels[1].axhline(0, color="black", linewidth=0.8)
    figure.suptitle(title)
    save_figure(figure, path)


def _bars(panel: Axes, values: list[tuple[Entry, Interval]], methods: list[str]) -> None:
    populations = list(dict.fromkeys(entry.population for entry, _ in values))
    shown = [method for method in methods if any(entry.method == method for entry, _ in values)]
    width = 0.8 / len(shown)
    for entry, value in values:
        place = populations.index(entry.population) + (shown.index(entry.method) - (len(shown) - 1) / 2) * width
        first = entry.population == populations[0]
        panel.bar(
            place,
            value.mean,
            width * 0.9,
            color=COLOURS[methods.index(entry.method) % len(COLOURS)],
            yerr=value.half_width,
            capsize=3,
            label=f"{entry.method} (n={value.n})" if first else None,
        )
    panel.set_xticks(range(len(populations)), populations)
