"""A job on a cluster: sent at a real terminal, followed and seen at work while it trains, and stopped by Ctrl-C."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from urllib.request import urlopen

import ray
import yaml
from ray.job_submission import JobSubmissionClient

from fedtalk_ray.commands.status import cluster_status, run_text, status_text
from fedtalk_ray.errors import RunError
from fedtalk_ray.tracking.prometheus import COUNTERS, METRICS
from tests.ray.conftest import ALONE, Make
from tests.served import until


def test_a_job_is_followed_seen_at_work_and_stopped(dashboard: str, make_config: Make, tmp_path: Path) -> None:
    """It would go on for ever, so that whoever looks finds it at work."""
    run = tmp_path / "seen-run"
    long = {"local": {"steps": 20, "batch_size": 2}, "evaluation": {"every": 10_000, "sample_every": 10_000}}
    config = make_config(run, rounds=10_000, slots=ALONE, **long)
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "small.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json") | {"address": "default"}))
    fedtalk = [sys.executable, "-m", "fedtalk_ray.commands.cli"]
    terminal, inside = pty.openpty()
    job = subprocess.Popen(
        [*fedtalk, "submit", "train", "small.yaml", "--address", dashboard, "--submission-id", "long"],
        cwd=folder,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=at_a_terminal,
    )
    os.close(inside)
    jobs = JobSubmissionClient(dashboard)
    try:
        read_until(terminal, "Running entrypoint")
        check_it_is_seen(run)
        os.write(terminal, b"\x03")
        read_until(terminal, "stop job long? [y/N]")
        os.write(terminal, b"y\n")
        read_until(terminal, "job long was told to stop")
        assert job.wait(30) == 130
        until(lambda: jobs.get_job_status("long") == "STOPPED", 60)
        until(lambda: not cluster_status(run).actors, 30)
        assert "nothing is at work here" in status_text(cluster_status(run))
    finally:
        job.kill()
        job.wait()
        os.close(terminal)
        # For a job that nobody stopped: the cluster would work on.
        with contextlib.suppress(RuntimeError):
            jobs.stop_job("long")


def check_it_is_seen(run: Path) -> None:
    """The status names a slot with its round and client, the server and the node; Prometheus' series are there."""
    says = {
        "the node": r"^nodes: 1\n  \S+  alive  4 CPU, 2 GPU, .*  head$",
        "the round": rf"^run {run}: round [1-9]\d* of 10000",
        "a slot at work": r"seen-run-[0-9a-f]{4}\.slot-\d+ .*alive .* pid \d+  fit: round [1-9]\d*, id000\d$",
        "the server": r"seen-run-[0-9a-f]{4}\.server-\d+ .*alive",
    }
    series = {"fedtalk_round", "fedtalk_cohort", "fedtalk_survivors", "fedtalk_loss", "fedtalk_stage_seconds"}
    series |= set(COUNTERS)
    metrics = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    missing, found, calls, status = dict(says), set[str](), set[str](), ""
    deadline = time.monotonic() + 120
    while missing or not series <= found or "slot.fit" not in calls:
        assert time.monotonic() < deadline, (list(missing), series - found, calls, status)
        time.sleep(0.5)  # on the cores that the job needs
        with contextlib.suppress(RunError):  # no line of history yet
            status = f"{status_text(cluster_status(run))}\n{run_text(run)}"
        missing = {what: text for what, text in missing.items() if not re.search(text, status, re.MULTILINE)}
        with urlopen(metrics) as page:
            text = page.read().decode()
        found |= set(re.findall(rf'^ray_(fedtalk_\w+)\{{.*run="{run}"', text, re.MULTILINE))
        calls |= set(re.findall(r'^ray_tasks\{.*[{,]Name="([^"]*)"', text, re.MULTILINE))
    assert found <= set(METRICS)
    # Ray keeps a series for every name of a call for ever: there must not be new ones with every round.
    assert not [name for name in calls if re.search(r"round\d", name)], calls


def at_a_terminal() -> None:
    """In the child: its terminal is its own, and it hears Ctrl-C. Shells let what they run in the background ignore it,
    these tests too, and children inherit that."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_until(terminal: int, words: str, seconds: float = 60) -> None:
    text, deadline = "", time.monotonic() + seconds
    while words not in text:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no {words!r} in:\n{text}"
        try:
            text += os.read(terminal, 4096).decode(errors="replace")
        except OSError:
            raise AssertionError(f"the command ended without {words!r}:\n{text}") from None
