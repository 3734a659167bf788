"""What all plots have in common: colours that everybody can tell apart, and figures that appear whole or not at all."""

from pathlib import Path

from matplotlib.figure import Figure

from fedtalk_ray.outputs import new_file

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's: told apart by colour-blind readers too."""
DPI = 150


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG, beside the target first and then renamed."""
    with new_file(path) as place:
        figure.savefig(place, dpi=DPI)
