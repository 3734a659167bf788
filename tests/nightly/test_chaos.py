"""Slots, servers, nodes and drivers killed at random moments: ten times, and with FEDTALK_LONG=1 sixty."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.privacy.ledger import Ledger
from fedtalk_ray.rounds import train
from fedtalk_ray.runs.checkpoints import load_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import read_history
from tests.nightly.conftest import LONG
from tests.ray.chaos import run_under_chaos
from tests.ray.conftest import Make, parameters
from tests.ray.own_cluster import OwnCluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[OwnCluster]:
    found = OwnCluster(tmp_path)
    try:
        yield found
    finally:
        found.close()


def check_plain(make: Make, cluster: OwnCluster, folder: Path, kills: dict[str, int], rounds: int) -> None:
    """The final adapter is an undisturbed run's to the bit, and every round is told once."""
    tree = {"rounds": rounds, "cohort": {"size": 3}, "evaluation": {"every": 3, "sample_every": 100, "windows": 1}}
    calm = make(folder / "calm", **tree)
    train(calm)
    rough = make(folder / "rough", **tree, failures={"retries": 20})
    chaos = run_under_chaos(cluster, rough, folder / "chaos", kills=kills, seed=1, pause=4.0)
    print(f"killed {dict(chaos.killed)}, {chaos.starts} starts")
    checkpoint = load_checkpoint(Path(rough.run) / "checkpoints")
    assert checkpoint is not None and checkpoint.round == rounds
    assert parameters(calm).tobytes() == parameters(rough).tobytes()
    told = read_history(folder / "rough" / "history.jsonl")
    assert [record["round"] for record in told] == list(range(1, rounds + 1))
    calm_loss = read_history(folder / "calm" / "history.jsonl")[-1]["held_out_loss"]
    assert told[-1]["held_out_loss"] == pytest.approx(calm_loss, rel=1e-6)


def check_private(make: Make, cluster: OwnCluster, folder: Path, kills: dict[str, int], rounds: int) -> None:
    """Ledger and history agree, and no round is charged for nothing or goes through twice."""
    config = make(
        folder / "private",
        rounds=rounds,
        aggregation="secure",
        population={"clients": 12},
        cohort={"size": 6, "sampling": "uniform"},
        privacy={
            "mechanism": "skellam",
            "noise_multiplier": 1.0,
            "clip_norm": 1.0,
            "view": "server",
            "insecure_min_survivors": 2,
            "samples_cap": 200,
        },
        strategy={"name": "uniform"},
        failures={"retries": 20, "quorum": 0.0},
        evaluation={"every": 100, "sample_every": 100, "windows": 1},
        server={},
    )
    chaos = run_under_chaos(cluster, config, folder / "chaos-private", kills=kills, seed=2, pause=5.0)
    print(f"killed {dict(chaos.killed)}, {chaos.starts} starts")
    told = read_history(folder / "private" / "history.jsonl")
    assert [record["round"] for record in told] == list(range(1, rounds + 1))
    ledger = Ledger(RunFolder(folder / "private").ledger)
    exchanges = [charge.exchange for charge in ledger.charges]
    assert len(exchanges) == len(set(exchanges)), "no exchange is charged twice"
    # Whole records are the server's; one that was interrupted may stand there twice.
    whole = {record["round"]: record for record in read_history(RunFolder(folder / "private").server_log)}
    opened = {number for number, record in whole.items() if "aborted" not in record}
    assert opened <= {charge.round for charge in ledger.charges} <= set(range(1, rounds + 1))
    spent = ledger.spent(config.privacy.delta)
    assert told[-1]["epsilon_server"] == pytest.approx(spent.server) or "interrupted" in told[-1]
    checkpoint = load_checkpoint(folder / "private" / "checkpoints")
    assert checkpoint is not None and checkpoint.round == rounds and np.isfinite(checkpoint.parameters).all()


@pytest.mark.timeout(3600)
def test_a_plain_run_survives_everything(make_config: Make, cluster: OwnCluster, tmp_path: Path) -> None:
    some, many = {"slot": 2, "server": 1, "node": 1, "driver": 1}, {"slot": 14, "server": 8, "node": 6, "driver": 8}
    check_plain(make_config, cluster, tmp_path, many if LONG else some, rounds=36 if LONG else 8)


@pytest.mark.timeout(3600)
def test_a_private_run_is_charged_for_what_it_did(make_config: Make, cluster: OwnCluster, tmp_path: Path) -> None:
    some, many = {"slot": 2, "server": 2, "driver": 1}, {"slot": 9, "server": 8, "driver": 7}
    check_private(make_config, cluster, tmp_path, many if LONG else some, rounds=24 if LONG else 8)
