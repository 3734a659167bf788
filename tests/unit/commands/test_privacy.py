"""`fedtalk privacy plan` and `show`: figures that agree with the accountants, and clear refusals."""

import re
from pathlib import Path

import pytest

from fedtalk_ray.commands.cli import main
from fedtalk_ray.config import parse_config, save_config
from fedtalk_ray.privacy.accounting import Noise
from fedtalk_ray.privacy.ledger import Charge, Ledger
from fedtalk_ray.runs.folder import RunFolder

PLAN = ["privacy", "plan", "--clients", "64", "--rounds", "48", "--epsilon", "8", "--delta", "1e-5", "--cohort", "16"]


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
    return capsys.readouterr().out


def test_a_plan_names_the_noise_for_both_observers(capsys: pytest.CaptureFixture[str]) -> None:
    """z = 1.31 and 2.08 were measured with two other accountants for this case."""
    text = said([*PLAN, "--mechanism", "gaussian"], capsys)
    found = dict(re.findall(r"(release|server) +noise multiplier ([\d.]+)", text))
    assert float(found["release"]) == pytest.approx(1.31, abs=0.01)
    assert float(found["server"]) == pytest.approx(2.08, abs=0.01)
    assert "at most 12 rounds each" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--cohort", "65"], "--cohort is 65, and there are 64 clients"),
        (["--epsilon", "0"], "--epsilon is 0; it must be above 0"),
        (["--delta", "1"], "--delta is 1; it must lie between 0 and 1"),
        (["--mechanism", "laplace"], "--mechanism is 'laplace'; known: skellam, gaussian"),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_line(
    change: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*PLAN, *change])
    assert left.value.code == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def run_folder(folder: Path, **privacy: object) -> Path:
    tree = {"run": str(folder), "shards": "s", "pretrained": "p", "privacy": privacy}
    (folder / "checkpoints").mkdir(parents=True)
    save_config(parse_config(tree, "test"), folder / "config.yaml")
    return folder


def test_what_a_run_spent_is_shown_with_its_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"mechanism": "gaussian", "noise_multiplier": 1.0, "clip_norm": 1.0, "epsilon": 30.0}
    run = run_folder(tmp_path / "run", **settings)
    ledger = Ledger(RunFolder(run).ledger)
    for number in range(1, 4):
        ledger.charge(Charge(number, number, Noise("gaussian", 1.0), 0.1, ("a", "b") if number == 1 else ("b",)))
    text = said(["privacy", "show", str(run)], capsys)
    spent = ledger.spent(1e-5)
    assert f"release view (models, not cohorts):  epsilon {spent.release:.3f} at delta 1e-05" in text
    assert f"epsilon {spent.server:.3f}, 3 rounds of one client" in text
    assert "central noise: the server saw the exact sums and is trusted" in text and "budget: epsilon 30" in text


def test_what_is_not_private_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = said(["privacy", "show", str(run_folder(tmp_path / "quiet", insecure_min_survivors=3))], capsys)
    assert "no noise: epsilon is infinite in every view" in quiet
    assert "INSECURE: sums of 3 clients may be opened" in quiet
    settings = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0}
    simulated = run_folder(tmp_path / "simulated", simulated_cohort=200, simulated_population=20_000, **settings)
    shown = said(["privacy", "show", str(simulated)], capsys)
    assert "SIMULATION: the noise is that of a cohort of 200 out of 20000" in shown


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["privacy", "show", str(tmp_path)])
    assert left.value.code == 1 and "is no run folder" in capsys.readouterr().err
