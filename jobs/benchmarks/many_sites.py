"""Rounds over many sites on one machine: seconds by stage, and what the coordinator needs.

python -m jobs.benchmarks.many_sites --sites 100 --out /tmp/many

Sites train nothing (`light_slot`) and do everything else that a site does: each has a folder, a key, a ledger and a
connection of its own, and answers every stage over HTTPS with the secure client. They are threads of a few processes.
The coordinator is that of `fedtalk serve`. Sites and coordinator share the machine's cores, so that seconds are those
of all work together; CPU is told for the coordinator's gate, its doors, its parameter server, and all sites.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import psutil

from fedtalk_ray.actors.site_pool import Coordinator
from fedtalk_ray.config import parse_config
from fedtalk_ray.enrolment.authority import Authority
from fedtalk_ray.progress import progress
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import read_history
from fedtalk_ray.serving import serve
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.sites.connection import Connection
from fedtalk_ray.sites.folder import SiteFolder
from fedtalk_ray.sites.policy import Policy
from fedtalk_ray.sites.site import Site
from jobs.benchmarks.light_slot import LightSlot

ADDRESS, PORT = "127.0.0.1", 18443
PREPARED = "prepare --corpus synthetic --identities 2 --clips 2 --unseen 2 --out"


def config_of(out: Path, sites: int, rounds: int, rank: int) -> TrainConfig:
    """A run whose work is the protocol's: nobody trains, and the model is looked at once, at the end."""
    return parse_config(
        {
            "run": str(out / "run"),
            "shards": str(out / "watched"),
            "pretrained": "fedtalk-tiny",
            "phases": ["faces"],
            "rounds": rounds,
            "aggregation": "secure",
            "cohort": {"size": sites},
            "adapter": {"rank": rank},
            "local": {"steps": 1, "identity_steps": 0},
            "evaluation": {"every": 1000, "sample_every": 1000, "windows": 1},
            "slots": {"count": 1, "placement_timeout_s": 1800},
        },
        "many_sites",
    )


def join(out: Path, authority: Authority, count: int) -> list[Path]:
    """The folders of so many members, which all have the watched people's shards: nobody reads them."""
    made = []
    for number in progress(range(count), count, "join"):
        folder = SiteFolder.create(
            out / "sites" / f"s{number:04d}",
            authority.invite(f"s{number:04d}"),
            f"https://{ADDRESS}:{PORT}",
            authority.coordinator.authority.read_bytes(),
        )
        folder.shards.symlink_to(out / "watched")
        made.append(folder)
    authority.sign([folder.request for folder in made])
    return [folder.path for folder in made]


def work(places: list[Path]) -> None:
    """These sites, each a thread of this process, until the run is over."""

    def one(place: Path) -> None:
        folder = SiteFolder(place)
        line = Connection(folder.address, folder.authority, folder.name, folder.key)
        site = Site(folder, line, Policy(), lambda said: None, make_slot=LightSlot)  # type: ignore[arg-type]
        with folder.alone():
            site.become_member()
            site.take_part(site.offered(), once=True)

    threads = [threading.Thread(target=one, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Watch(threading.Thread):
    """CPU seconds and most memory of processes, by what their titles begin with."""

    def __init__(self, *titles: str) -> None:
        super().__init__(daemon=True)
        self.cpu = dict.fromkeys(titles, 0.0)
        self.peak = dict.fromkeys(titles, 0.0)
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                try:
                    title = " ".join(process.cmdline())
                    for wanted in self.cpu:
                        if title.startswith(f"ray::{wanted}"):
                            self.cpu[wanted] = sum(process.cpu_times()[:2])
                            self.peak[wanted] = max(self.peak[wanted], process.memory_info().rss / 2**20)
                except psutil.Error:
                    continue

    def close(self) -> None:
        self._over.set()
        self.join()


def _process(out: Path, number: int, places: list[Path]) -> subprocess.Popen[bytes]:
    """These sites at work."""
    listed = out / f"sites-{number}"
    listed.write_text("\n".join(map(str, places)))
    command = [sys.executable, "-m", "jobs.benchmarks.many_sites", "--out", str(out), "--work", str(listed)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})


def _wait_for(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=2, help="of the adapters: how many values are summed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--doors", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.work:
        work([Path(line) for line in chosen.work.read_text().splitlines()])
        return
    out: Path = chosen.out
    out.mkdir(parents=True)
    cli = [sys.executable, "-m", "fedtalk_ray.commands.cli"]
    subprocess.run([*cli, *PREPARED.split(), str(out / "watched")], check=True)
    authority = Authority.create(out / "authority", [ADDRESS])
    places = join(out, authority, chosen.sites)
    watch = Watch("GateProcess", "DoorProcess", "ParameterServer")
    watch.start()
    config = config_of(out, chosen.sites, chosen.rounds, chosen.rank)
    coordinator = Coordinator(authority.coordinator, ADDRESS, PORT, doors=chosen.doors)
    began = time.monotonic()
    working = [_process(out, number, places[number :: chosen.processes]) for number in range(chosen.processes)]
    try:
        serve(config, coordinator, stay=lambda _, __: _wait_for(working))
    finally:
        watch.close()
        for process in working:
            process.kill()
    seconds = time.monotonic() - began
    records = read_history(RunFolder(Path(config.run)).history_file)
    stages = {
        stage: median(record["stage_seconds"].get(stage, 0.0) for record in records)
        for stage in records[-1]["stage_seconds"]
    }
    of_sites = sum(os.times()[2:4])
    print(f"\n{chosen.sites} sites, {records[-1]['bytes_up'] // (4 * records[-1]['survivors'])} values, ", end="")
    print(f"{chosen.rounds} rounds, {seconds:.0f} s in all; survivors {[record['survivors'] for record in records]}")
    print("seconds a round, median: " + ", ".join(f"{stage} {value:.1f}" for stage, value in stages.items()))
    for what, cpu in watch.cpu.items():
        print(f"{what}: {cpu:.0f} s of CPU, {watch.peak[what]:.0f} MiB at most")
    print(f"children of this process, sites among them: {of_sites:.0f} s of CPU")


if __name__ == "__main__":
    main()
