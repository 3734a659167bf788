"""Tables read back: what a person and what a program finds in them."""

from pathlib import Path

import pytest
from scipy import stats

from fedtalk_ray.comparison.plots import curve_band
from fedtalk_ray.comparison.tables import (
    cell,
    entries_of,
    latex,
    tables_of,
    won_back_table,
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


def test_a_band_is_the_interval_at_every_round_that_all_seeds_measured() -> None:
    """Two values 0.2 apart: s = 0.1414, t(0.975; 1) = 12.706."""
    band = curve_band({0: {1: 0.5, 2: 0.4}, 1: {1: 0.7, 2: 0.6, 3: 0.1}})
    assert list(band) == [1, 2] and band[1].mean == pytest.approx(0.6)
    assert band[1].half_width == pytest.approx(12.7062 * 0.1, abs=1e-4)


def test_latex_escapes(tmp_path: Path) -> None:
    assert latex("50% of a_b ± −1 & $#") == r"50\% of a\_b $\pm$ $-$1 \& \$\#"
    write_latex(tables_of(entries_of(FIGURES, METRICS, "fedavg"), METRICS, "fedavg", 3, "a_b"), tmp_path / "t.tex")
    assert (tmp_path / "t.tex").read_text(encoding="utf-8").count(r"seen.lip\_x") == 2


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
    vague = won_back({0: 1.0, 1: 1.0}, {0: 1.1, 1: 0.9}, {0: 1.0, 1: 1.0})
    assert vague
    table = won_back_table({"all": {"b": vague}}, ("clean", "bad", "isfa"))
    assert table.title == "Share won back: (isfa − bad) / (clean − bad)"
    assert table.rows[0][3] == "none: the harm cannot be told from 0"
