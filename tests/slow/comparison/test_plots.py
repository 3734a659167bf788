"""Plots hold the figures they are given, and are written as pictures."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fedtalk_ray.comparison import plots
from fedtalk_ray.comparison.tables import entries_of

CURVES = {
    "all": {
        "isfa": {0: {1: 0.5, 2: 0.4, 3: 0.3}, 1: {1: 0.7, 2: 0.5, 3: 0.3}},
        "fedavg": {0: {2: 0.6, 3: 0.5}},
    }
}
FIGURES = {
    name: {"isfa": {"seen.loss": {0: 1.0, 1: 2.0, 2: 3.0}}, "fedavg": {"seen.loss": {0: 2.0, 1: 2.5, 2: 4.5}}}
    for name in ("k10", "k20")
}


def test_a_band_is_the_interval_at_every_round_that_all_seeds_measured() -> None:
    band = plots.curve_band({0: {1: 0.5, 2: 0.4}, 1: {1: 0.7, 2: 0.6, 3: 0.1}})
    assert list(band) == [1, 2]
    assert band[1].mean == pytest.approx(0.6)
    # Two values 0.2 apart: s = 0.1414, t(0.975; 1) = 12.706.
    assert band[1].half_width == pytest.approx(12.7062 * 0.1, abs=1e-4)


def test_bars_are_as_high_as_the_means_and_carry_their_intervals() -> None:
    entries = entries_of(FIGURES, ["seen.loss"], "fedavg")
    panel = Figure().subplots()
    plots._bars(panel, [(entry, entry.figure) for entry in entries], ["isfa", "fedavg"])
    assert [bar.get_height() for bar in panel.patches] == [2, 3, 2, 3]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in panel.patches]
    assert [round(centre) for centre in centres] == [0, 0, 1, 1] and centres == sorted(centres)
    low, high = panel.containers[1].errorbar[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(4.3027 / np.sqrt(3), abs=1e-4)
    assert panel.get_legend_handles_labels()[1] == ["isfa (n=3)", "fedavg (n=3)"]


def test_pictures_are_written_and_differ_with_their_figures(tmp_path: Path) -> None:
    entries = entries_of(FIGURES, ["seen.loss"], "fedavg")
    plots.plot_curves(CURVES, "try", "held-out loss", tmp_path / "plots" / "losses.png")
    plots.plot_bars(entries, "seen.loss", "fedavg", "try", tmp_path / "plots" / "bars.png")
    plots.plot_bars(entries[:1], "seen.loss", "fedavg", "try", tmp_path / "plots" / "one.png")
    pictures = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "plots").iterdir()}
    assert set(pictures) == {"losses.png", "bars.png", "one.png"}
    for picture in pictures.values():
        assert picture.shape[0] > 300 and len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 10
