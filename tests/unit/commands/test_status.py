"""How far a run is, in one line, from its folder alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedtalk_ray.commands.status import run_text
from fedtalk_ray.config import parse_config, save_config

NOISE = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0}
SIMULATED = {"simulated_cohort": 200, "simulated_population": 20_000}


@pytest.mark.parametrize(("more", "says"), [({}, False), (SIMULATED, True)])
def test_the_epsilon_of_a_simulated_cohort_says_so(
    tmp_path: Path, secure_record: Callable[..., dict[str, Any]], more: dict[str, int], says: bool
) -> None:
    tree = {"run": str(tmp_path), "shards": "s", "pretrained": "p", "privacy": NOISE | more}
    save_config(parse_config(tree, "test"), tmp_path / "config.yaml")
    (tmp_path / "history.jsonl").write_text(json.dumps(secure_record(2)) + "\n")
    line = run_text(tmp_path)
    assert "epsilon 3.000 (server view 8.000)" in line and "\n" not in line
    assert ("8.000); SIMULATION: the noise is that of a cohort of 200 out of 20000" in line) == says
