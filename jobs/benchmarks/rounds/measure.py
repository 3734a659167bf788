"""What a round costs, measured in the same way for every contestant, and the JSON file that says so.

Included is the process that starts the contestant, its children and theirs, and every process whose command line
names the Ray session that it started: raylet, GCS, agents, log monitor, idle and busy workers. CPU time is read from
the kernel's clock of each process (nanoseconds, finished threads included; psutil's ticks elsewhere than on Linux).
What is lost: processes born and gone within one round, and the last moments of one that dies. The search for
processes and the reading of memory lie between rounds and are in no figure. Memory is PSS: shared pages in parts.
"""

import argparse
import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import psutil

WARM = 11
"""Rounds after which memory is looked at again: Ray frees what rounds leave in its store once a second, so that the
first second fills it to what it will hold."""

INCLUDED = "the starting process, its descendants, and all processes of the Ray session that it started"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, required=True, help="clients that train in each round")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2, help="ignored by contestants of one process")
    parser.add_argument("--population", type=int, help="clients to sample from; without it, all train in every round")
    parser.add_argument("--out", type=Path, required=True, help="a .json file; the final vector lies beside it")
    chosen = parser.parse_args()
    chosen.population = chosen.population or chosen.clients
    return chosen


class Meter:
    """Call `lap` when a round is done. The first lap counts from the making of the meter, and holds all warming up."""

    def __init__(self) -> None:
        self.born = psutil.Process().create_time()
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.first_round = 0.0
        self.memories: dict[int, float] = {}
        self._seconds: dict[psutil.Process, float] = {}
        self._find()
        self._open()

    def lap(self) -> None:
        wall, now = time.perf_counter() - self._at, time.time()
        self._read(self._seconds)
        self._read(self._find())
        self.wall.append(wall)
        self.cpu.append(sum(self._seconds.values()) - self._before)
        if len(self.wall) == 1:
            self.first_round = now - self.born
        if len(self.wall) in (1, WARM):
            self.memories[len(self.wall)] = self.memory()
        self._open()

    def memory(self) -> float:
        """PSS of all processes together, MiB."""
        total = 0
        for process in self._seconds:
            try:
                used = process.memory_full_info()
            except psutil.Error:
                continue  # gone
            total += getattr(used, "pss", used.rss)
        return total / 2**20

    def _open(self) -> None:
        self._read(self._seconds)
        self._before, self._at = sum(self._seconds.values()), time.perf_counter()

    def _find(self) -> list[psutil.Process]:
        """Adds processes that are new, with no CPU time yet, and returns them."""
        here = psutil.Process()
        found = [here, *here.children(recursive=True)]
        session = ray_session()
        if session:
            found += [p for p in psutil.process_iter(["cmdline"]) if session in " ".join(p.info["cmdline"] or [])]
        new = [process for process in dict.fromkeys(found) if process not in self._seconds]
        self._seconds.update(dict.fromkeys(new, 0.0))
        return new

    def _read(self, processes: "list[psutil.Process] | dict[psutil.Process, float]") -> None:
        for process in list(processes):
            try:
                self._seconds[process] = cpu_seconds(process)
            except (OSError, psutil.Error):
                continue  # gone: the last reading stands


def cpu_seconds(process: psutil.Process) -> float:
    if sys.platform == "linux":
        return time.clock_gettime((~process.pid << 3) | 2)  # clock_getcpuclockid(3)
    times = process.cpu_times()
    return times.user + times.system


def ray_session() -> str:
    """The name of the Ray session that this process is connected to, or nothing."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return ""
    sockets = Path(ray.nodes()[0]["ObjectStoreSocketName"])
    return next((part for part in sockets.parts if part.startswith("session_")), "")


def write(
    contestant: str,
    chosen: argparse.Namespace,
    meter: Meter,
    vector: np.ndarray,
    cohorts: list[list[int]],
    memory: float,
) -> None:
    """The report of one run. `cohorts` are the clients that trained in each round, `memory` is that after the last."""
    sizes = {len(cohort) for cohort in cohorts}
    if len(cohorts) != chosen.rounds or len(meter.wall) != chosen.rounds or sizes != {chosen.clients}:
        raise RuntimeError(f"{contestant}: {len(cohorts)} rounds of {sizes} clients, not what was asked")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    np.save(chosen.out.with_suffix(".npy"), vector)
    report = {
        "contestant": contestant,
        "clients": chosen.clients,
        "rounds": chosen.rounds,
        "workers": chosen.workers,
        "population": chosen.population,
        "included": INCLUDED,
        "wall_s": meter.wall,
        "cpu_s": meter.cpu,
        "start_to_first_round_s": meter.first_round,
        "pss_mib_first_round": meter.memories[1],
        "pss_mib_warm": meter.memories.get(WARM),
        "pss_mib_end": memory,
        "checksum": float(vector.astype(np.float64).sum()),
        "vector": chosen.out.with_suffix(".npy").name,
        "cohorts": cohorts,
        "versions": versions("torch", "numpy", "ray", "flwr", "pfl"),
    }
    chosen.out.write_text(json.dumps(report, indent=1), encoding="utf-8")


def versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
