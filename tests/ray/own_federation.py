"""A federation of a test's own: an authority, a coordinator, and sites that are processes, each at its own line."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedtalk_ray.actors.site_pool import Coordinator, Entrance
from fedtalk_ray.enrolment.authority import Authority
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.serving import serve
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import MANIFEST, load_manifest
from fedtalk_ray.sites.folder import SiteFolder
from tests.ray.conftest import Make
from tests.ray.own_lines import Line
from tests.ray.sites_at_work import LIGHT, Beside

HERE = "127.0.0.1"
PRIVACY = {"insecure_min_survivors": 2, "samples_cap": 400, "clip_norm": 1.0}

FAKE_CLOCK = next(map(str, Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), "")
"""A library by which a process has another clock; empty where it is not installed (Debian: `faketime`)."""

DISK_MB = 64
"""Of who has a disk of its own."""


def part_of(shards: Path, out: Path, names: list[str]) -> Path:
    """Shards of these people alone, as a machine of their own would have them."""
    out.mkdir(parents=True)
    tree = json.loads((shards / MANIFEST).read_text())
    tree["identities"] = {name: tree["identities"][name] for name in names}
    tree["files"] = {file: entry for file, entry in tree["files"].items() if file.split("/")[0][7:] in names}
    (out / MANIFEST).write_text(json.dumps(tree))
    for name in names:
        shutil.copytree(shards / f"client={name}", out / f"client={name}")
    return out


class OwnFederation:
    """The coordinator runs in this process."""

    def __init__(self, folder: Path, people: Path) -> None:
        """people: shards of whom the sites are."""
        self.folder, self._people = folder, people
        self.lines: dict[str, Line] = {}
        self.authority = Authority.create(folder / "authority", [HERE])
        self.names = load_manifest(people).clients()
        with socket.create_server((HERE, 0)) as free:
            self._port = free.getsockname()[1]
        self.told: list[str] = []
        self.over = threading.Event()
        self.entrance: Entrance | None = None
        self._working: list[subprocess.Popen[bytes]] = []
        self._disks: list[Path] = []

    def sites(self, count: int, policies: dict[int, str] | None = None, own_disk: bool = False) -> list[SiteFolder]:
        """So many sites, members all, each with its own person's clips."""
        made = [
            self._site(name, (policies or {}).get(place, "fewest_survivors: 2\n"), own_disk)
            for place, name in enumerate(self.names[:count])
        ]
        assert not any(decision.refused for decision in self.authority.sign([site.request for site in made]))
        return made

    def _site(self, name: str, policy: str, own_disk: bool) -> SiteFolder:
        disk = self.folder / name / "disk"
        disk.mkdir(parents=True)
        if own_disk:
            self._mount(disk)
        self.lines[name] = line = Line(self._port)
        address, key = f"https://{HERE}:{line.port}", self.authority.coordinator.authority.read_bytes()
        made = SiteFolder.create(disk / "site", self.authority.invite(name), address, key)
        part_of(self._people, made.shards, [name])
        (made.path / "policy.yaml").write_text(policy)
        Beside(made.path).path.mkdir()
        return made

    def _mount(self, disk: Path) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", disk], check=True)
        self._disks.append(disk)

    @property
    def disk(self) -> Path:
        """What the coordinator's run lies on."""
        return self.folder / "coordinator"

    def own_disk(self) -> None:
        """Gives the coordinator one."""
        self.disk.mkdir()
        self._mount(self.disk)

    def config(self, make_config: Make, **changes: Any) -> TrainConfig:
        watched = self.folder / "watched"
        if not watched.exists():
            part_of(self._people, watched, load_manifest(self._people).unseen())
        tree = {"aggregation": "secure", "shards": str(watched), "privacy": PRIVACY, "cohort": {"size": 3}}
        return make_config(self.disk / "run", **tree | {"server": {}, "rounds": 2, "slots": {"count": 1}} | changes)

    def serve(self, config: TrainConfig, late_after: float = 120.0, **how: Any) -> RunFolder:
        """One whole run, until the sites that are at work have ended."""
        federation = self

        class Noted(Coordinator):
            def open(self, of: TrainConfig) -> Entrance:
                federation.entrance = super().open(of)
                return federation.entrance

        coordinator = Noted(self.authority.coordinator, HERE, self._port, late_after)

        def stay(sites: int, entrance: Entrance) -> None:
            for line in self.lines.values():
                # A whole model over a slow line would take minutes.
                line.rate = 0.0
            self.over.wait(60)

        return RunFolder(serve(config, coordinator, tell=self.told.append, stay=stay, **how))

    def start(self, sites: list[SiteFolder], light: bool = False, clock: str = "") -> Callable[[], bool]:
        """Lets sites work (light: without training anything; clock: whose clock is as far off, such as "+1h", where
        libfaketime is installed); whether all of them were there until the end."""
        command = [sys.executable, "-m", "tests.ray.sites_at_work", *(str(site.path) for site in sites)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({LIGHT: "1"} if light else {})
        if clock and FAKE_CLOCK:
            environment |= {"LD_PRELOAD": FAKE_CLOCK, "FAKETIME": clock, "DONT_FAKE_MONOTONIC": "1"}
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        self._working.append(process)

        def wait() -> None:
            process.wait()
            if all(each.poll() is not None for each in self._working):
                self.over.set()

        done = threading.Thread(target=wait)
        done.start()

        def all_left_well() -> bool:
            done.join(60)
            return process.returncode == 0

        return all_left_well

    def close(self) -> None:
        for process in self._working:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for line in self.lines.values():
            line.close()
        for disk in self._disks:
            # Lazily: who was killed may not have let go of it yet.
            subprocess.run(["umount", "--lazy", disk], check=True)
