"""`fedtalk privacy plan`, `show` and `client`: figures that agree with the accountants, and clear refusals."""

import json
import re
from pathlib import Path

import pytest
from dp_accounting import get_epsilon_gaussian

from fedtalk_ray.commands.cli import main
from fedtalk_ray.config import parse_config, save_config
from fedtalk_ray.privacy.accounting import Noise
from fedtalk_ray.privacy.client_ledger import Agreement, ClientLedger
from fedtalk_ray.privacy.ledger import Charge, Ledger
from fedtalk_ray.runs.folder import RunFolder

PLAN = ["privacy", "plan", "--clients", "64", "--rounds", "48", "--epsilon", "8", "--delta", "1e-5", "--cohort", "16"]
CLIENT = ["privacy", "client"]

EMPTY = json.dumps({"rounds": {}, "last": {}, "noise": [], "bare": 0})


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
    return capsys.readouterr().out


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    printed = capsys.readouterr()
    assert left.value.code == 1 and printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def test_a_plan_names_the_noise_for_both_observers(capsys: pytest.CaptureFixture[str]) -> None:
    """z = 1.31 and 2.08 were measured with two other accountants for this case."""
    text = said([*PLAN, "--mechanism", "gaussian"], capsys)
    found = dict(re.findall(r"(release|server) +noise multiplier ([\d.]+)", text))
    assert float(found["release"]) == pytest.approx(1.31, abs=0.01)
    assert float(found["server"]) == pytest.approx(2.08, abs=0.01)
    assert "at most 12 rounds each" in text


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
    assert "is no run folder" in refused(["privacy", "show", str(tmp_path)], capsys)
    quiet = said(["privacy", "show", str(run_folder(tmp_path / "quiet", insecure_min_survivors=3))], capsys)
    assert "no noise: epsilon is infinite in every view" in quiet
    assert "INSECURE: sums of 3 clients may be opened" in quiet
    settings = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0}
    simulated = run_folder(tmp_path / "simulated", simulated_cohort=200, simulated_population=20_000, **settings)
    shown = said(["privacy", "show", str(simulated)], capsys)
    assert "SIMULATION: the noise is that of a cohort of 200 out of 20000" in shown


def test_a_client_sees_what_it_spent_over_all_runs_and_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rounds of z = 8 and one of z = 4, without amplification: inverse squares add up."""
    path = tmp_path / "ana.json"
    ledger, strong, weak = ClientLedger(path), Noise("gaussian", 8.0), Noise("gaussian", 4.0)
    for run, rounds, noise in (("one", 0, strong), ("one", 1, weak), ("two", 0, strong)):
        ledger.charge(run, rounds + 1, rounds, noise, Agreement())
    expected = get_epsilon_gaussian((2 / 8**2 + 1 / 4**2) ** -0.5, 1e-6)
    before = path.read_bytes()
    text = said(["privacy", "client", str(path), "--epsilon", "8", "--delta", "1e-6", "--rounds", "5"], capsys)
    assert text.splitlines() == [
        f"{path}: 3 rounds",
        "  2 in run one",
        "  1 in run two",
        "  2 with gaussian noise, multiplier 8, which is the server's word",
        "  1 with gaussian noise, multiplier 4, which is the server's word",
        f"epsilon so far: {expected:.3f} at delta 1e-06 (the server view's)",
        f"left of epsilon 8: {8 - expected:.3f}",
        "left of 5 rounds: 2",
    ]
    assert "left" not in said(["privacy", "client", str(path)], capsys)
    assert path.read_bytes() == before


def test_after_a_round_without_noise_nothing_of_an_epsilon_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ana.json"
    path.write_text(EMPTY)
    text = said(["privacy", "client", str(path), "--epsilon", "8"], capsys)
    assert ": 0 rounds\nepsilon so far: 0.000 " in text and "left of epsilon 8: 8.000" in text
    path.unlink()
    for before, noise in enumerate([Noise("skellam", 8.0, 2.0**18, 100), None]):
        ClientLedger(path).charge("one", before + 1, before, noise, Agreement())
    text = said(["privacy", "client", str(path), "--epsilon", "8", "--rounds", "1"], capsys)
    assert "  1 with skellam noise, multiplier 8\n  1 without noise\nepsilon so far: infinite at delta 1e-05" in text
    assert "left of epsilon 8: 0.000" in text and "left of 1 rounds: 0" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*PLAN, "--cohort", "65"], "--cohort is 65, and there are 64 clients"),
        ([*PLAN, "--epsilon", "0"], "--epsilon is 0; it must be above 0"),
        ([*PLAN, "--delta", "1"], "--delta is 1; it must lie between 0 and 1"),
        ([*PLAN, "--mechanism", "laplace"], "--mechanism is 'laplace'; known: skellam, gaussian"),
        ([*CLIENT, "none.json"], "is no file; a client's is RUN.clients/NAME/ledger.json or in agreement.ledgers"),
        ([*CLIENT, "half.json"], "cannot be read"),
        ([*CLIENT, "other.json"], "its rounds by run are not as many as those by noise"),
        ([*CLIENT, "empty.json", "--epsilon", "0"], "--epsilon is 0; it must be above 0"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    other = '{"rounds": {"one": 2}, "last": {"one": 2}, "noise": [], "bare": 1}'
    for name, content in (("half", "{"), ("other", other), ("empty", EMPTY)):
        Path(f"{name}.json").write_text(content)
    assert says in refused(arguments, capsys)
