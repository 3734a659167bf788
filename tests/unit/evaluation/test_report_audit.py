"""The report's section on attacks, from audit.json alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedtalk_ray.errors import RunError
from fedtalk_ray.evaluation.report_audit import COLUMNS, attacks, read_audit

FIGURE = {"name": "area", "value": 0.8123, "low": 0.71, "high": 0.9, "chance": 0.5, "claim": None}


def written(run: Path, **changes: Any) -> Path:
    figures = [FIGURE, FIGURE | {"name": "epsilon", "value": None, "low": None, "chance": None, "claim": 8.0}]
    outcome = {"attack": "membership", "knows": "x", "figures": figures, "failures": [], "notes": [], "series": {}}
    (run / "audit").mkdir(parents=True)
    tree = {"mode": "both", "round": 3, "failures": [], "outcomes": [outcome]} | changes
    (run / "audit" / "audit.json").write_text(json.dumps(tree))
    return run


def test_a_run_that_was_not_attacked_says_how(tmp_path: Path) -> None:
    section = attacks(tmp_path, 3, read_audit(tmp_path))
    assert section.rows == [] and f"fedtalk audit {tmp_path}" in section.sentences[0]


def test_figures_are_told_with_all_that_stands_beside_them(tmp_path: Path) -> None:
    section = attacks(tmp_path, 3, read_audit(written(tmp_path)))
    assert section.columns == COLUMNS and section.sentences[0] == "No promise was found broken."
    assert section.rows == [
        ("who was a client", "area", "0.812", "0.71 to 0.9", "0.5", ""),
        ("who was a client", "epsilon", "no number", "", "", "8"),
    ]
    assert not any("has gone on" in line for line in section.sentences)


def test_a_run_that_promises_nothing_breaks_nothing(tmp_path: Path) -> None:
    section = attacks(tmp_path, 3, read_audit(written(tmp_path, mode="no privacy")))
    assert section.sentences[0].startswith("This run promises nothing")


def test_broken_promises_and_older_rounds_are_said_first(tmp_path: Path) -> None:
    section = attacks(tmp_path, 5, read_audit(written(tmp_path, failures=["canaries: too much"])))
    assert section.sentences[0] == "BROKEN PROMISE: canaries: too much"
    assert section.sentences[1] == "The attacks were on round 3, and the run has gone on to 5."


@pytest.mark.parametrize("text", ["{", "[]", '{"outcomes": [{}], "failures": [], "round": 1, "mode": "both"}'])
def test_a_damaged_file_is_one_line(tmp_path: Path, text: str) -> None:
    written(tmp_path)
    (tmp_path / "audit" / "audit.json").write_text(text)
    with pytest.raises(RunError, match=r"audit\.json is damaged .*; `fedtalk audit .*` writes it again"):
        read_audit(tmp_path)
