"""`docs/sites.md`, "Two laptops, as a trial": its commands as they stand there, on two hosts of their own."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.media.encoding import write_video
from tests.nightly.conftest import LONG

pytestmark = pytest.mark.timeout(3600)

FIRST, SECOND = "192.168.0.5", "192.168.0.6"
SHORT = "" if LONG else " rounds=2 speech.rounds=2"


@dataclass(frozen=True)
class Running:
    """A command that goes on, and the file of what it prints."""

    log: Path
    process: subprocess.Popen[str]

    def says(self, words: str, seconds: float) -> str:
        """All that it has printed, once these words are there."""
        until = time.monotonic() + seconds
        while words not in (said := self.log.read_text() if self.log.exists() else ""):
            ended = self.process.poll() is not None
            assert not ended and time.monotonic() < until, f"{words!r} was not said:\n{said[-3000:]}"
            time.sleep(0.5)
        return said


class Laptop:
    """A host with a clone of the project, in which lines are typed."""

    def __init__(self, folder: Path, repository: Path, name: str, address: str) -> None:
        self.home, self._host = folder / name / "fedtalk_ray", f"ft{os.getpid()}{name}"
        subprocess.run(["git", "clone", "-q", repository, self.home], check=True)
        # What `make install` would make here once more.
        (self.home / ".venv").symlink_to(repository / ".venv")
        self._jobs: list[subprocess.Popen[str]] = []
        ip("netns", "add", self._host)
        device = f"ft{os.getpid()}{name}"
        if name == "a":
            ip("link", "add", device, "type", "veth", "peer", "name", f"ft{os.getpid()}b")
        ip("link", "set", device, "netns", self._host)
        ip("-n", self._host, "addr", "add", f"{address}/24", "dev", device)
        for each in (device, "lo"):
            ip("-n", self._host, "link", "set", each, "up")
        ip("-n", self._host, "route", "add", "default", "dev", device)

    def types(self, line: str) -> str:
        """What a line prints."""
        done = self._start(line)
        said, _ = done.communicate(timeout=1200)
        assert done.returncode == 0, f"{line}\n{said}"
        return said

    def leaves_running(self, line: str, log: str) -> "Running":
        """The line goes on while others are typed."""
        self._jobs.append(self._start(f"{line} >{log} 2>&1"))
        return Running(self.home / log, self._jobs[-1])

    def _start(self, line: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"PYTHONPATH": str(self.home), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
        # A new shell: a Ray that was started for something else is no part of it.
        command = ["ip", "netns", "exec", self._host, "bash", "-c", f". .venv/bin/activate\n{line}"]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command,
            cwd=self.home,
            env=environment,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def close(self) -> None:
        for job in self._jobs:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGTERM)
                try:
                    job.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(job.pid, signal.SIGKILL)
        ip("netns", "del", self._host)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def laptops(tmp_path: Path, repository: Path) -> Iterator[list[Laptop]]:
    """Each with clips of one drawn person in CLIPS."""
    try:
        ip("netns", "add", "ft-try")
        ip("netns", "del", "ft-try")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here ({error})")
    made = []
    try:
        for number, (name, address) in enumerate((("a", FIRST), ("b", SECOND))):
            made.append(Laptop(tmp_path, repository, name, address))
            clips = made[-1].home / "CLIPS"
            clips.mkdir()
            for clip in range(4):
                drawn = render_clip(4 + number, clip, size=288).video
                frames = np.pad(drawn.frames, ((0, 0), (60, 60), (60, 60), (0, 0)), constant_values=128)
                write_video(clips / f"private{clip}.mp4", frames, drawn.audio)
        yield made
    finally:
        for laptop in made:
            laptop.close()


def blocks(page: Path) -> list[list[str]]:
    """The lines of each block of commands under the page's heading, without their comments."""
    section = page.read_text().split("## Two laptops, as a trial")[1].split("\n## ")[0]
    return [
        [re.sub(r"\s+#.*", "", line) for line in block.strip().splitlines()]
        for block in re.findall(r"```\n(.*?)```", section, re.DOTALL)
    ]


def test_the_page_leads_two_laptops_to_a_model(laptops: list[Laptop], repository: Path) -> None:
    at_first, on_both = blocks(repository / "docs" / "sites.md")
    first, second = laptops
    codes = {}
    *before, serving = at_first
    assert serving.startswith("fedtalk serve")
    for line in before:
        if line.startswith(("make install", "source .venv")):
            continue
        said = first.types(line)
        if found := re.match(r"fedtalk authority invite authority (\w+)", line):
            codes[found[1]] = said.split()[0]
    served = first.leaves_running(f"{serving}{SHORT}", "serve.log")
    served.says("listening at port 8443", 300)
    sites = []
    for laptop, name in ((first, "a"), (second, "b")):
        *others, joining = on_both
        for line in others:
            laptop.types(line)
        sites.append(laptop.leaves_running(joining.replace("CODE", codes[name]), "join.log"))
    for site in sites:
        site.says("waits for the authority", 300)
    first.types("fedtalk authority sign authority")
    for site in sites:
        said = site.says("the run is over; its model: ", 2400)
        print(said)
    for laptop, site in zip(laptops, sites, strict=True):
        model = laptop.home / site.log.read_text().split("its model: ")[1].split()[0]
        assert (model / "pipeline" / "model_index.json").exists()
    # Nobody's videos went over to the other one.
    assert not list((first.home / "runs").rglob("private*"))
