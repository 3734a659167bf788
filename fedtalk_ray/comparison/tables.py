"""The comparison as tables: tidy CSV for programs, Markdown and LaTeX for people; cells are mean ± half-width."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from pathlib import Path

from fedtalk_ray.evaluation.statistics import Interval, WonBack, interval, paired_difference
from fedtalk_ray.outputs import new_file

Figures = Mapping[str, Mapping[str, Mapping[str, Mapping[int, float]]]]
"""population -> method -> metric -> seed -> value; a run that failed is absent."""

COLUMNS = (
    "population", "method", "metric", "seeds", "mean", "half_width",
    "baseline", "pairs", "difference", "difference_half_width",
)  # fmt: skip
MINUS = "−"
_LATEX = {"±": r"$\pm$", MINUS: "$-$", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$"}


@dataclass(frozen=True)
class Table:
    """Text cells under a title; the first column names the row."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Entry:
    """One method's figure on one population; difference is None for the baseline itself, and without pairs."""

    population: str
    method: str
    metric: str
    figure: Interval
    difference: Interval | None


def entries_of(figures: Figures, metrics: Sequence[str], baseline: str) -> list[Entry]:
    """Every figure that exists, with its paired difference to the baseline."""
    return [
        Entry(
            population,
            method,
            metric,
            interval(list(values[metric].values())),
            None
            if method == baseline
            else paired_difference(values[metric], methods.get(baseline, {}).get(metric, {})),
        )
        for population, methods in figures.items()
        for method, values in methods.items()
        for metric in metrics
        if values.get(metric)
    ]


def tables_of(entries: list[Entry], metrics: Sequence[str], baseline: str, seeds: int, name: str) -> list[Table]:
    """The figures, and where there is more than one method their differences to the baseline."""
    places = {metric: _decimals([entry for entry in entries if entry.metric == metric]) for metric in metrics}
    populations = list(dict.fromkeys(entry.population for entry in entries))

    def rows(of: dict[tuple[str, str, str], Interval]) -> list[list[str]]:
        lines = []
        for population, method in dict.fromkeys((population, method) for population, method, _ in of):
            label = method if len(populations) == 1 else f"{population}, {method}"
            cells = [of.get((population, method, metric)) for metric in metrics]
            lines.append([label, *(cell(each, places[m], seeds) for each, m in zip(cells, metrics, strict=True))])
        return lines

    whole = {(entry.population, entry.method, entry.metric): entry.figure for entry in entries}
    differences = {(e.population, e.method, e.metric): e.difference for e in entries if e.difference is not None}
    title = f"{name}: mean ± half-width of the 95% interval (Student t) over {seeds} seed{'s' * (seeds != 1)}"
    if seeds == 1:
        title = f"{name}: one seed, so no interval"
    tables = [Table(title, ["method", *metrics], rows(whole))]
    if differences:
        tables.append(Table(f"Difference to {baseline}, same seeds paired", ["method", *metrics], rows(differences)))
    return tables


def won_back_table(shares: Mapping[str, Mapping[str, WonBack]], names: tuple[str, str, str]) -> Table:
    """Shares by population and metric; names: the methods (clean, harmed, rescued)."""
    clean, harmed, rescued = names
    rows = []
    for population, by_metric in shares.items():
        for metric, share in by_metric.items():
            label = metric if len(shares) == 1 else f"{population}, {metric}"
            bounds = "none: the harm cannot be told from 0"
            if share.share.n == 1:
                bounds = "none: one seed"
            elif share.low is not None and share.high is not None:
                bounds = f"{_number(share.low, 2)} to {_number(share.high, 2)}"
            each = ", ".join(_number(value, 2) for value in share.by_seed.values())
            rows.append([label, cell(share.share, 2, share.share.n), _number(share.pooled, 2), bounds, each])
    title = f"Share won back: ({rescued} {MINUS} {harmed}) / ({clean} {MINUS} {harmed})"
    return Table(title, ["figure", "mean over seeds", "pooled", "95% interval of pooled (Fieller)", "by seed"], rows)


def cell(figure: Interval | None, decimals: int, seeds: int) -> str:
    """`0.218 ± 0.003`; says n where it is not the planned number of seeds, and where one value has no interval.

    Values that are all the same have none either: a model that no run made is one model, whatever the seed.
    """
    if figure is None:
        return ""
    text = _number(figure.mean, decimals)
    if figure.half_width:
        text += f" ± {_number(figure.half_width, decimals)}"
    return text if figure.n == seeds > 1 else f"{text} (n={figure.n})"


def write_csv(entries: list[Entry], baseline: str, path: Path) -> None:
    """One line a figure, numbers in full; an empty field where there is no interval or no difference."""
    with new_file(path) as place, open(place, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for entry in entries:
            figure, other = entry.figure, entry.difference
            difference = [baseline, other.n, other.mean, other.half_width] if other else [None] * 4
            writer.writerow(
                [entry.population, entry.method, entry.metric, figure.n, figure.mean, figure.half_width, *difference]
            )


def write_markdown(tables: list[Table], path: Path) -> None:
    """Pipe tables, each under its title."""
    parts = []
    for table in tables:
        lines = [table.header, ["---"] * len(table.header), *table.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"**{table.title}**\n\n{body}\n")
    with new_file(path) as place:
        place.write_text("\n".join(parts), encoding="utf-8")


def write_latex(tables: list[Table], path: Path) -> None:
    r"""`table` environments of plain LaTeX: no package is needed; `\input` the file."""
    parts = []
    for table in tables:
        body = " \\\\\n".join(" & ".join(map(latex, line)) for line in table.rows)
        parts.append(
            f"\\begin{{table}}\n\\centering\n\\caption{{{latex(table.title)}}}\n"
            f"\\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}\n\\hline\n"
            f"{' & '.join(map(latex, table.header))} \\\\\n\\hline\n{body} \\\\\n\\hline\n"
            "\\end{tabular}\n\\end{table}\n"
        )
    with new_file(path) as place:
        place.write_text("\n".join(parts), encoding="utf-8")


def latex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def _decimals(entries: list[Entry]) -> int:
    """Two digits of the smallest half-width, so that every interval of a column can be read; 4 without any."""
    widths = [each.half_width for entry in entries for each in (entry.figure, entry.difference) if each]
    known = [width for width in widths if width and isfinite(width)]
    return min(max(1 - floor(log10(min(known))), 1), 6) if known else 4


def _number(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}".replace("-", MINUS)
