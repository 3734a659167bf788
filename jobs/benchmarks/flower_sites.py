"""Flower's deployment engine beside sites: SuperLink and SuperNodes, SecAgg+, vectors of the length of `many_sites`.

python -m jobs.benchmarks.flower_sites --nodes 8 --out FOLDER

Nodes train nothing. Everything is as Flower's own guide starts it, but without TLS, which spares it work, and without
telemetry. flwr gets an environment of its own in FOLDER/env. Seconds are those of all processes on the same cores.
"""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path
from statistics import median

import psutil

from jobs.benchmarks.environments import FLOWER, python_with

PORT = 28091
APP = Path(__file__).with_name("flower_app")

CONNECTION = f"""[superlink]
default = "here"

[superlink.here]
address = "127.0.0.1:{PORT}"
insecure = true
"""


def processes_of(started: list[subprocess.Popen[bytes]]) -> list[psutil.Process]:
    """These and whatever they started."""
    found = []
    for each in started:
        process = psutil.Process(each.pid)
        found += [process, *process.children(recursive=True)]
    return found


def watch(started: list[subprocess.Popen[bytes]], out: Path, seconds: float) -> tuple[float, float]:
    """Waits for the result; the most memory of all processes and of the first one alone, MiB."""
    peak, first, until = 0.0, 0.0, time.monotonic() + seconds
    while not out.exists():
        if time.monotonic() > until:
            raise SystemExit(f"Flower did not end within {seconds:g} s; see {out.parent / 'log'}")
        time.sleep(1)
        sizes = []
        for process in processes_of(started):
            try:
                sizes.append(process.memory_full_info().pss / 2**20)
            except psutil.Error:
                continue
        peak, first = max(peak, sum(sizes)), max(first, sizes[0])
    return peak, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--values", type=int, default=79_024)
    parser.add_argument("--most-seconds", type=float, default=3600)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    chosen = parser.parse_args()
    home: Path = chosen.out.absolute()
    home.mkdir(parents=True, exist_ok=True)
    programs = python_with(home / "env", FLOWER).parent
    (home / "config.toml").write_text(CONNECTION)
    result = home / "rounds.json"
    result.unlink(missing_ok=True)
    settings = {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment = os.environ | settings | {"PATH": f"{programs}:{os.environ['PATH']}"}
    started: list[subprocess.Popen[bytes]] = []
    with open(home / "log", "wb") as log:

        def start(program: str, *arguments: str) -> None:
            command = [str(programs / program), "--insecure", *arguments]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

        try:
            start("flower-superlink", "--port", str(PORT), "--disable-runtime-dependency-installation")
            time.sleep(10)
            for node in range(chosen.nodes):
                start("flower-supernode", "--superlink", f"127.0.0.1:{PORT}", "--port", str(PORT + 1 + node))
            asked = f'rounds={chosen.rounds} nodes={chosen.nodes} values={chosen.values} out="{result}"'
            subprocess.run([programs / "flwr", "run", APP, "here", "-c", asked], env=environment, check=True)
            peak, superlink = watch(started, result, chosen.most_seconds)
        finally:
            for process in [running for each in started for running in processes_of([each])]:
                process.kill()
    rounds = json.loads(result.read_text())
    seconds = [seconds for seconds, _ in rounds]
    print(f"\nFlower, {chosen.nodes} nodes, {chosen.values} values, {len(rounds)} rounds", end="; ")
    print(f"survivors {[count for _, count in rounds]}")
    print(f"seconds a round: median {median(seconds):.1f} ({', '.join(f'{each:.1f}' for each in seconds)})")
    print(f"memory at most: {peak:.0f} MiB all processes, {superlink:.0f} MiB SuperLink")


if __name__ == "__main__":
    main()
