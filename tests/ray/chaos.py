"""Kills slots, servers, nodes and drivers of a run at seeded random moments, and starts again what a user would.

The run is `fedtalk train` in a process of its own on a cluster of its own; whoever survives must finish it.
"""

import math
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import read_history
from fedtalk_ray.settings import TrainConfig
from tests.ray.own_cluster import ENVIRONMENT, OwnCluster, kill, workers

SLOT = ("SlotProcess", "slot.")
SERVER = ("ParameterServer", "server.")


@dataclass
class Chaos:
    """What was done to a run."""

    killed: Counter[str] = field(default_factory=Counter)
    starts: int = 0


def run_under_chaos(
    cluster: OwnCluster,
    config: TrainConfig,
    folder: Path,
    *,
    kills: dict[str, int],
    seed: int,
    pause: float,
) -> Chaos:
    """Runs `config` to its end while `kills` ("slot", "server", "node", "driver" -> how often) happen.

    pause: mean seconds between two kills; on a quick machine less, so that kills are over when the rounds are. A killed
    driver is started again with --resume; one that ends by itself with an error is a failure of the test.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json") | {"address": cluster.address}))
    rng = np.random.default_rng(seed)
    plan = [what for what, count in sorted(kills.items()) for _ in range(count)]
    order = [plan[index] for index in rng.permutation(len(plan))]
    chaos, driver = Chaos(), _drive(path, config, folder, 0)
    chaos.starts = 1
    node = cluster.add_node() if "node" in kills else None
    limit = 40.0 * sum(kills.values()) + 300
    deadline = time.monotonic() + limit
    told = RunFolder(Path(config.run)).history_file
    try:
        while True:
            # When the run is so far, the next one is due.
            share = (len(plan) - len(order) + 0.5) / (len(plan) + 1)
            until = time.monotonic() + float(rng.uniform(0.3, 1.7)) * pause
            while time.monotonic() < until and driver.poll() is None:
                if order and len(read_history(told)) >= config.all_rounds * share:
                    until = min(until, time.monotonic() + float(rng.uniform(0.0, 1.0)))
                    share = math.inf
                time.sleep(0.1)
            assert time.monotonic() < deadline, f"not done after {limit:g} s: {chaos}\n{_said(folder)}"
            if driver.poll() is not None:
                assert driver.returncode == 0, _said(folder)
                if len(read_history(told)) == config.all_rounds:
                    assert not order, f"the run ended before {order} could be killed: give it more rounds"
                    return chaos
            if not order:
                continue
            what = order[0]
            if what == "driver":
                kill(driver.pid)
                driver.wait()
                driver = _drive(path, config, folder, chaos.starts)
                chaos.starts += 1
            elif what == "node":
                assert node is not None
                cluster.kill_node(node)
                node = cluster.add_node()
            else:
                found = workers(cluster.address, *(SLOT if what == "slot" else SERVER))
                if not found or not kill(int(rng.choice(found))):
                    continue
            order.pop(0)
            chaos.killed[what] += 1
    finally:
        kill(driver.pid)
        driver.wait()


def _drive(path: Path, config: TrainConfig, folder: Path, number: int) -> subprocess.Popen[bytes]:
    resume = ["--resume"] if (Path(config.run) / "config.yaml").is_file() else []
    with open(folder / f"driver-{number:03d}.log", "w") as log:
        return subprocess.Popen(
            [str(Path(sys.executable).parent / "fedtalk"), "train", str(path), *resume],
            stdout=log,
            stderr=log,
            env=ENVIRONMENT,
            start_new_session=True,
        )


def _said(folder: Path) -> str:
    return "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("driver-*.log"))[-2:])
