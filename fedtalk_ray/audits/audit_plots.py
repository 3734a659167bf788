"""An attack's scores and pictures as PNG files."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Drawing

from fedtalk_ray.audits.attack import Outcome
from fedtalk_ray.plotting import COLOURS, save_figure


def plot_outcome(outcome: Outcome, folder: Path, private: Path | None) -> None:
    """FOLDER/<attack>.png with the scores of both groups, and PRIVATE/<attack>.png with pictures, where it has any.

    private: a folder of the client whom the pictures show.
    """
    finite = {name: values for name, values in outcome.series.items() if len(values) and np.isfinite(values).all()}
    panels: dict[str, dict[str, list[float]]] = {}
    for name, values in finite.items():
        what, _, who = name.rpartition(": ")
        panels.setdefault(what, {})[who] = values
    if panels:
        drawing = Drawing(figsize=(1 + 4 * len(panels), 3.5), layout="constrained")
        for axes, (what, groups) in zip(
            drawing.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), 20)
            for colour, (who, values) in zip(COLOURS, groups.items(), strict=False):
                axes.hist(values, edges, color=colour, alpha=0.55, density=True, label=f"{who} (n={len(values)})")
            axes.set(title=what, xlabel="score", ylabel="density")
            axes.legend(fontsize="small")
        save_figure(drawing, folder / f"{outcome.attack}.png")
    if outcome.pictures and private is not None:
        drawing = Drawing(figsize=(2.2 * len(outcome.pictures), 2.6), layout="constrained")
        for axes, (name, picture) in zip(
            drawing.subplots(1, len(outcome.pictures), squeeze=False)[0], outcome.pictures.items(), strict=True
        ):
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(name, fontsize="small")
            axes.axis("off")
        save_figure(drawing, private / f"{outcome.attack}.png")
