"""The report's section on attacks, from audit.json alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedtalk_ray.errors import RunError
from fedtalk_ray.report.facts import Facts
from fedtalk_ray.report.page import read_audit
from fedtalk_ray.report.sections import ATTACK_COLUMNS, Section, attacks
from fedtalk_ray.runs.folder import RunFolder

FIGURE = {"name": "area", "value": 0.8123, "low": 0.71, "high": 0.9, "chance": 0.5, "claim": None}


def written(run: Path, **changes: Any) -> Path:
    figures = [FIGURE, FIGURE | {"name": "epsilon", "value": None, "low": None, "chance": None, "claim": 8.0}]
    outcome: dict[str, Any] = {"attack": "membership", "title": "who was a client", "knows": "x", "figures": figures}
    outcome |= {"failures": [], "notes": [], "series": {}}
    (run / "audit").mkdir(parents=True)
    tree = {"mode": "both", "round": 3, "failures": [], "outcomes": [outcome]} | changes
    (run / "audit" / "audit.json").write_text(json.dumps(tree))
    return run


def section_of(run: Path, make_config: Callable[..., Any], after: int = 3) -> Section:
    folder = RunFolder(run)
    return attacks(Facts(folder, make_config(), "", [{"round": after}], None), read_audit(folder))


def test_a_run_that_was_not_attacked_or_promises_nothing_says_so(tmp_path: Path, make_config) -> None:
    section = section_of(tmp_path, make_config, 3)
    assert section.rows == [] and f"fedtalk audit {tmp_path}" in section.sentences[0]
    section = section_of(written(tmp_path, mode="no privacy"), make_config)
    assert section.sentences[0].startswith("This run promises nothing")


def test_figures_are_told_with_all_that_stands_beside_them(tmp_path: Path, make_config) -> None:
    section = section_of(written(tmp_path), make_config, 3)
    assert section.columns == ATTACK_COLUMNS and section.sentences[0] == "No promise was found broken."
    assert section.rows == [
        ("who was a client", "area", "0.812", "0.71 to 0.9", "0.5", ""),
        ("who was a client", "epsilon", "no number", "", "", "8"),
    ]
    assert not any("has gone on" in line for line in section.sentences)
    section = section_of(written(tmp_path / "other", failures=["canaries: too much"]), make_config, 5)
    assert section.sentences[0] == "BROKEN PROMISE: canaries: too much"
    assert section.sentences[1] == "The attacks were on round 3, and the run has gone on to 5."


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    written(tmp_path)
    for text in ("{", '{"outcomes": [{}], "failures": [], "round": 1, "mode": "both"}'):
        (tmp_path / "audit" / "audit.json").write_text(text)
        with pytest.raises(RunError, match=r"audit\.json is damaged .*; `fedtalk audit .*` writes it again"):
            read_audit(RunFolder(tmp_path))
