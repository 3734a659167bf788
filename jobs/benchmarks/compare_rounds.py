"""Federated rounds beside a bare loop: CPU and wall time, start, memory, of pfl-research, Flower and this project.

hand is the least that Ray can do (`rounds/hand_made.py`), ours+dp this project with clipping and Gaussian noise.

python -m jobs.benchmarks.compare_rounds
python -m jobs.benchmarks.compare_rounds --clients 8 --rounds 3 --repeats 1 --only bare,pfl
python -m jobs.benchmarks.compare_rounds --population 1000,10000,100000

The same work in each (`jobs/benchmarks/rounds/work.py`): a perceptron of 101,770 parameters, ten SGD steps of 32 per
client and round, equal weights. Contestants take turns, so that each run has a bare loop next to it in time; ratios
are against that one. bare and pfl are one process, the others have two workers. One thread per process everywhere,
Ray's workers at the driver's own priority. `jobs/benchmarks/rounds/measure.py` says what is counted.

The first round warms up and is only in "start to first round": process start, imports, Ray and that round. CPU of a
run is the mean over the later rounds (background work comes in bursts), wall is their median. The table shows medians
over repeats. The difference of the final model from the bare loop's is given twice: its norm over the model's norm,
and its largest value over the model's largest. Flower's grows with clients and rounds, as it averages parameters in
float32 and in the order of arrival where the others average updates: its arithmetic, repeated in one process, comes to
5.5e-7 and 1.7e-6 for 128 clients and 11 rounds. With --population each contestant draws its own
cohorts, so a bare loop replays those and is compared with.

The environments and the report of each run lie in the cache folder. A contestant that fails leaves a hole in the
table, its log beside its report, and exit code 1.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from fedtalk_ray.progress import ticker
from jobs.benchmarks.environments import FLOWER, PFL, python_with, same_numbers
from jobs.benchmarks.rounds.measure import WARM
from jobs.benchmarks.rounds.work import initial_vector, one_round

FOLDER = Path(__file__).parent / "rounds"
SCRIPTS = {
    "bare": "bare",
    "pfl": "with_pfl",
    "flower": "with_flower",
    "hand": "hand_made",
    "ours": "with_fedtalk",
    "ours+dp": "with_fedtalk",
}
EXTRA = {"ours+dp": {"FEDTALK_NOISE": "1"}}
"""Settings of one contestant alone."""
NEEDS = {"pfl": PFL, "flower": FLOWER}
POPULATION_COHORT = 16
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
}
COLUMNS = (
    "clients | population | contestant | CPU, s a round | CPU over bare | wall, s a round | wall over bare"
    f" | start to first round, s | PSS after round 1, MiB | after {WARM} | at the end | difference, norm | largest"
)


@dataclass
class Case:
    clients: int
    population: int


@dataclass
class Run:
    """One report, with the figures of the bare loop that ran next to it."""

    report: dict[str, Any]
    bare: dict[str, Any] | None
    difference: tuple[float, float] | None

    def row(self) -> list[float | None]:
        cpu, wall = cpu_a_round(self.report), wall_a_round(self.report)
        return [
            cpu,
            cpu / cpu_a_round(self.bare) if self.bare else None,
            wall,
            wall / wall_a_round(self.bare) if self.bare else None,
            self.report["start_to_first_round_s"],
            self.report["pss_mib_first_round"],
            self.report["pss_mib_warm"],
            self.report["pss_mib_end"],
            *(self.difference or (None, None)),
        ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description="Federated rounds: pfl-research, Flower and this project, beside bare."
    )
    parser.add_argument("--clients", type=numbers, default=[8, 32, 128], metavar="N,N,...")
    parser.add_argument(
        "--population",
        type=numbers,
        default=[],
        metavar="P,P,...",
        help=f"instead of --clients: {POPULATION_COHORT} clients a round, out of so many",
    )
    parser.add_argument("--rounds", type=int, default=11, help="the first is for warming up")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", help=f"contestants, out of {','.join(SCRIPTS)}")
    parser.add_argument("--cache", type=Path, default=Path(".benchmarks"), help="environments and reports")
    options = parser.parse_args(arguments)
    asked = options.only.split(",") if options.only else list(SCRIPTS)
    if unknown := set(asked) - SCRIPTS.keys():
        parser.error(f"--only: no contestant {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    if options.rounds < 2:
        parser.error("--rounds: at least 2, as the first is for warming up")

    pythons = interpreters(asked, options.cache)
    cases = [Case(POPULATION_COHORT, size) for size in options.population]
    cases = cases or [Case(clients, clients) for clients in options.clients]
    reports = options.cache / "rounds" / time.strftime("%Y%m%d-%H%M%S")
    print("| " + COLUMNS + " |\n|" + "---|" * len(COLUMNS.split("|")), flush=True)
    failed = False
    with ticker(len(cases) * options.repeats * len(pythons), "runs") as tick:
        for case in cases:
            runs: dict[str, list[Run]] = {name: [] for name in pythons}
            for repeat in range(options.repeats):
                bare = None
                for name, python in pythons.items():
                    out = reports / f"{name}-{case.clients}-of-{case.population}-{repeat}.json"
                    report = run(python, name, case, options.rounds, options.workers, out)
                    tick()
                    if report is None:
                        failed = True
                        continue
                    bare = report if name == "bare" else bare
                    runs[name].append(Run(report, bare, difference(report, bare, out.parent)))
            for name, done in runs.items():
                print(line(case, name, done), flush=True)
    print(f"reports: {reports}", file=sys.stderr)
    return int(failed)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def interpreters(asked: list[str], cache: Path) -> dict[str, Path]:
    """The Python of each contestant, bare first. Environments that are missing are made."""
    pythons = {}
    for name, script in SCRIPTS.items():
        if name not in asked:
            continue
        if not (FOLDER / f"{script}.py").exists():
            print(f"{name} is left out: there is no {script}.py in {FOLDER.name}/", file=sys.stderr)
        elif name in NEEDS:
            pythons[name] = python_with(cache / name, NEEDS[name], *same_numbers(), "psutil")
        else:
            pythons[name] = Path(sys.executable)
    return pythons


def run(python: Path, name: str, case: Case, rounds: int, workers: int, out: Path) -> dict[str, Any] | None:
    """One contestant in a process of its own, started in the repository's root."""
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", f"jobs.benchmarks.rounds.{SCRIPTS[name]}", "--out", str(out.absolute())]
    command += ["--clients", str(case.clients), "--population", str(case.population)]
    command += ["--rounds", str(rounds), "--workers", str(workers)]
    surroundings = {key: value for key, value in os.environ.items() if key not in {"RAY_ADDRESS", "PYTHONPATH"}}
    log = out.with_suffix(".log")
    with log.open("wb") as sink:
        code = subprocess.run(
            command,
            env=surroundings | SETTINGS | EXTRA.get(name, {}),
            cwd=FOLDER.parents[2],
            stdout=sink,
            stderr=subprocess.STDOUT,
        ).returncode
    if code or not out.exists():
        print(f"{name} failed with exit code {code}: see {log}", file=sys.stderr)
        return None
    return dict(json.loads(out.read_text(encoding="utf-8")))


def difference(report: dict[str, Any], bare: dict[str, Any] | None, folder: Path) -> tuple[float, float] | None:
    """How far the final model is from the bare loop's, or from a replay of this run's own cohorts: norm, largest."""
    if report is bare:
        return 0.0, 0.0
    vector = np.load(folder / report["vector"])
    if report["population"] > report["clients"]:
        expected = initial_vector()
        for round_number, cohort in enumerate(report["cohorts"]):
            expected = one_round(expected, sorted(cohort), round_number)
    elif bare:
        expected = np.load(folder / bare["vector"])
    else:
        return None
    off = (vector - expected).astype(np.float64)
    return float(np.linalg.norm(off) / np.linalg.norm(expected)), float(np.abs(off).max() / np.abs(expected).max())


def cpu_a_round(report: dict[str, Any]) -> float:
    return mean(report["cpu_s"][1:])


def wall_a_round(report: dict[str, Any]) -> float:
    return median(report["wall_s"][1:])


def line(case: Case, name: str, runs: list[Run]) -> str:
    shapes = (".3f", ".2f", ".3f", ".2f", ".1f", ".0f", ".0f", ".0f", ".1e", ".1e")
    cells = []
    for place, shape in enumerate(shapes):
        known = [value for run in runs if (value := run.row()[place]) is not None]
        cells.append(format(median(known), shape) if known else "")
    return f"| {case.clients} | {case.population} | {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
