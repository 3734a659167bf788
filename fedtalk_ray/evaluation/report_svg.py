"""Matplotlib's figures as SVG that lives inside a page: its text is the page's, its colours change with the page's.

Lines and text are drawn in `INK`, which the page sees as `currentColor`; series are drawn in `COLOURS`, which it sees
as the variables --series-0, --series-1 and so on. Every id carries the plot's name, because all plots of a page share
one name space.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedtalk_ray.evaluation.plots import COLOURS

INK = "#010203"
"""A colour that nothing else has."""

SERIES = tuple(
    ({"#e69f00": "#b87f00", "#56b4e9": "#2f93cf"}.get(colour, colour), colour)
    for colour in COLOURS
    if colour != "#000000"
)
"""Each colour on a light and on a dark page: two are too pale on white, and are darker there."""

WIDTH, HEIGHT = 4.7, 3.1
"""Inches, of 72 units each: as wide as a phone's screen, so that text there is as large as it is drawn."""

GAP = 0.08
"""Between two labels beside a plot, as a share of its height."""

LABEL_LENGTH = 14

_STYLE: Any = {
    "font.size": 11,
    "svg.fonttype": "none",  # text stays text
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
} | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK)


def draw_svg(name: str, label: str, draw: Callable[[Axes], None], height: float = HEIGHT) -> str:
    """What `draw` draws on a panel, as an `<svg>` element.

    name: unique in the page, letters and dashes. label: what the plot shows, for those who do not see it.
    """
    file = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}), _own_fonts():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.patch.set_visible(False)
        draw(figure.subplots())
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _for_a_page(file.getvalue(), name, label)


def label_ends(panel: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Names beside the right edge instead of a legend, pushed apart where they would overlap.

    ends: text, the value where the line ends, colour. Called when the limits of the panel are final.
    """
    low, high = panel.get_ylim()
    ends = sorted(ends, key=lambda end: end[1])
    wanted = [(value - low) / (high - low) for _, value, _ in ends]
    for (text, _, colour), begin, place in zip(ends, wanted, spread(wanted), strict=True):
        panel.plot([1.01, 1.05], [begin, place], color=colour, linewidth=1.2, transform=panel.transAxes, clip_on=False)
        # A name may hold dollar signs, and is no formula.
        panel.text(1.06, place, short(text), va="center", fontsize=10.5, transform=panel.transAxes, parse_math=False)


def spread(places: Sequence[float], gap: float = GAP) -> list[float]:
    """Sorted places, moved as little as it takes to keep `gap` between them, and below 1 where they were."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    ceiling = 1.0
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def short(text: str) -> str:
    return text if len(text) <= LABEL_LENGTH else text[: LABEL_LENGTH - 1] + "…"


def _for_a_page(svg: str, name: str, label: str) -> str:
    """One element without a declaration, a style sheet, metadata or a size of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    # Written "font: 10px 'DejaVu Sans', ..." or in two parts, by matplotlib's version; the family is to be the page's.
    svg = re.sub(r"font: (?:\w+ )?([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = svg.replace(INK, "currentColor")
    for index, (_, colour) in enumerate(SERIES):
        svg = svg.replace(colour, f"var(--series-{index})")
    root, rest = svg.split(">", 1)
    root = re.sub(r' (?:width|height|xmlns(?::\w+)?|version)="[^"]*"', "", root)
    return f'{root} role="img" aria-label="{escape(label)}">{rest}'.strip()


@contextlib.contextmanager
def _own_fonts() -> Iterator[None]:
    """Letters that matplotlib's font lacks are the browser's business."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
