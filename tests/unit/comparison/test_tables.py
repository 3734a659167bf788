"""Tables read back: what a person and what a program finds in them."""

import csv
from pathlib import Path

import pytest
from scipy import stats

from fedtalk_ray.comparison.tables import (
    cell,
    entries_of,
    latex,
    tables_of,
    won_back_table,
    write_csv,
    write_latex,
    write_markdown,
)
from fedtalk_ray.evaluation.statistics import Interval, won_back

FIGURES = {
    "all": {
        "isfa": {"unseen.loss": {0: 0.20, 1: 0.22, 2: 0.21}, "seen.lip_x": {0: 0.5, 1: 0.5, 2: 0.8}},
        "fedavg": {"unseen.loss": {0: 0.21, 1: 0.231, 2: 0.22}, "seen.lip_x": {0: 0.4, 1: 0.5, 2: 0.6}},
    }
}
METRICS = ["unseen.loss", "seen.lip_x"]


def test_cells() -> None:
    assert cell(Interval(0.21834, 0.00312, 3), 4, 3) == "0.2183 ± 0.0031"
    assert cell(Interval(-0.5, 0.25, 2), 2, 3) == "−0.50 ± 0.25 (n=2)"
    assert cell(Interval(0.5, None, 1), 2, 1) == "0.50 (n=1)"
    assert cell(Interval(0.5, 0.0, 3), 2, 3) == "0.50", "one model, whatever the seed"
    assert cell(None, 2, 3) == ""


def test_markdown_holds_figures_and_paired_differences(tmp_path: Path) -> None:
    entries = entries_of(FIGURES, METRICS, "fedavg")
    write_markdown(tables_of(entries, METRICS, "fedavg", 3, "try"), tmp_path / "table.md")
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows] == ["method", "---", "isfa", "fedavg", "method", "---", "isfa"]
    whole = stats.ttest_1samp([0.20, 0.22, 0.21], 0).confidence_interval(0.95)
    paired = stats.ttest_rel([0.20, 0.22, 0.21], [0.21, 0.231, 0.22]).confidence_interval(0.95)
    for row, bounds in ((rows[2], whole), (rows[6], paired)):
        mean, half = (float(part.replace("−", "-")) for part in row[1].split(" ± "))
        assert mean == pytest.approx((bounds.low + bounds.high) / 2, abs=1e-4)
        assert half == pytest.approx((bounds.high - bounds.low) / 2, abs=1e-4)
    assert "95% interval" in lines[0] and "Difference to fedavg, same seeds paired" in "\n".join(lines)


def test_one_seed_says_that_there_is_no_interval() -> None:
    one = {"all": {"isfa": {"seen.loss": {4: 0.5}}, "fedavg": {"seen.loss": {4: 0.25}}}}
    tables = tables_of(entries_of(one, ["seen.loss"], "fedavg"), ["seen.loss"], "fedavg", 1, "try")
    assert tables[0].title == "try: one seed, so no interval"
    assert tables[0].rows == [["isfa", "0.5000 (n=1)"], ["fedavg", "0.2500 (n=1)"]]
    assert tables[1].rows == [["isfa", "0.2500 (n=1)"]]


def test_csv_holds_the_numbers_in_full(tmp_path: Path) -> None:
    write_csv(entries_of(FIGURES, METRICS, "fedavg"), "fedavg", tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    isfa = next(row for row in rows if row["method"] == "isfa" and row["metric"] == "unseen.loss")
    assert (isfa["seeds"], isfa["pairs"], isfa["baseline"]) == ("3", "3", "fedavg")
    assert float(isfa["difference"]) == pytest.approx(-0.031 / 3)
    fedavg = next(row for row in rows if row["method"] == "fedavg")
    assert fedavg["difference"] == "" and float(fedavg["half_width"]) > 0


def test_a_population_names_its_rows_and_a_lost_baseline_costs_only_the_difference() -> None:
    figures = {"k10": FIGURES["all"], "k20": {"isfa": FIGURES["all"]["isfa"]}}
    tables = tables_of(entries_of(figures, METRICS, "fedavg"), METRICS, "fedavg", 3, "try")
    assert [row[0] for row in tables[0].rows] == ["k10, isfa", "k10, fedavg", "k20, isfa"]
    assert [row[0] for row in tables[1].rows] == ["k10, isfa"]


def test_latex_escapes_and_closes_what_it_opens(tmp_path: Path) -> None:
    assert latex("50% of a_b ± −1 & $#") == r"50\% of a\_b $\pm$ $-$1 \& \$\#"
    write_latex(tables_of(entries_of(FIGURES, METRICS, "fedavg"), METRICS, "fedavg", 3, "a_b"), tmp_path / "t.tex")
    text = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert text.isascii()
    for environment in ("table", "tabular"):
        assert text.count(f"\\begin{{{environment}}}") == text.count(f"\\end{{{environment}}}") == 2
    body = [line for line in text.splitlines() if " & " in line]
    assert all(line.count(" & ") == 2 and line.endswith(r"\\") for line in body)
    assert "seen.lip\\_x" in text


def test_the_share_won_back_is_said_with_its_bounds_or_with_why_there_are_none() -> None:
    clear = won_back(dict.fromkeys(range(3), 1.0), {0: 2.0, 1: 2.1, 2: 2.05}, {0: 1.5, 1: 1.55, 2: 1.52})
    vague = won_back(dict.fromkeys(range(3), 1.0), {0: 1.1, 1: 0.9, 2: 1.05}, dict.fromkeys(range(3), 1.0))
    assert clear and vague
    table = won_back_table({"all": {"a": clear, "b": vague}}, ("clean", "bad", "isfa"))
    assert table.title == "Share won back: (isfa − bad) / (clean − bad)"
    assert table.rows[0][2] == "0.50" and " to " in table.rows[0][3]
    assert table.rows[1][3] == "none: the harm cannot be told from 0"
