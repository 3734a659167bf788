"""Jobs on a head of their own, which asks for a token: sent, watched while they train, failed and refused."""

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
import requests
import yaml
from playwright.sync_api import sync_playwright
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.tracking.prometheus import COUNTERS, METRICS
from tests.ray.own_cluster import ENVIRONMENT, OwnCluster
from tests.served import form, frames_of, until

BIN = Path(sys.executable).parent
TOKEN = "a-token-of-this-test-alone-and-long-enough"
LIMIT = 60 << 20
"""Bytes that this head takes in one message; Ray's own limit is 500 MiB."""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnCluster]:
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_max_grpc_message_size": str(LIMIT),
        # The entry point's python is the one that the head finds.
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    cluster = OwnCluster(tmp_path_factory.mktemp("head"), dashboard=True, settings=settings)
    try:
        wait_for_dashboard(cluster)
        yield cluster
    finally:
        cluster.close()


def wait_for_dashboard(cluster: OwnCluster) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urlopen(f"{cluster.dashboard_url}/api/version")
        except HTTPError:
            return  # it is there, and wants the token
        except URLError:
            assert time.monotonic() < deadline, cluster.log()
            time.sleep(0.5)


def environment(token: str = TOKEN) -> dict[str, str]:
    return ENVIRONMENT | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "PATH": f"{BIN}:{os.environ['PATH']}"}


def fedtalk(*arguments: str, at: OwnCluster, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    where = ["--address", at.dashboard_url] if arguments[0] == "submit" else ["--address", at.address]
    command = [str(BIN / "fedtalk"), *arguments, *where]
    return subprocess.run(command, env=environment(token), capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def written(make_config: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a configuration and nothing else, as somebody has who installed the package."""
    folder = tmp_path_factory.mktemp("work")
    watched, alone = {"sample_every": 2, "windows": 1, "clients": 2}, {"count": 1}
    config = make_config(folder.parent / "jobs-run", rounds=2, evaluation=watched, slots=alone)
    tree = config.model_dump(mode="json") | {"address": "default"}
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    return folder


def test_a_job_trains_and_leaves_what_was_promised(head: OwnCluster, written: Path) -> None:
    """Live log, exit code 0, a run's end in `status`, TensorBoard, and the report."""
    run = written.parent / "jobs-run"
    done = fedtalk("submit", "train", "small.yaml", "--working-dir", str(written), at=head)
    assert done.returncode == 0, done.stdout + done.stderr
    # The driver's own progress, as it came.
    printed = done.stdout
    assert printed.index("train: 1 of 2") < printed.index("train: 2 of 2") < printed.index(f"run: {run}")
    assert (run / "pipeline" / "model_index.json").is_file()
    after = fedtalk("status", str(run), at=head).stdout
    assert f"run {run}: round 2 of 2" in after and "nothing is at work here" in after and "died" not in after
    events = EventAccumulator(str(run / "tensorboard"), {"images": 0, "scalars": 0, "audio": 0}).Reload()
    assert [event.step for event in events.Scalars("held_out/loss")] == [1, 2]
    assert len(events.Audio("sample/sound")) == len(events.Images("sample/speaking")) == 1
    its_report_opens_in_a_browser(head, written, run)


def its_report_opens_in_a_browser(head: OwnCluster, written: Path, run: Path) -> None:
    done = fedtalk("submit", "report", str(run), "--client", "id0000", "--working-dir", str(written), at=head)
    assert done.returncode == 0 and f"report: {run / 'report.html'}" in done.stdout, done.stderr
    if shutil.which("chromium") is None and "FEDTALK_NEEDS_BROWSER" not in os.environ:
        return  # CI has one, and says so
    told: list[str] = []
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.goto((run / "report.html").as_uri())
        page.wait_for_function("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
        names = [name.strip() for name in page.locator("figcaption strong").all_text_contents()]
        browser.close()
    assert told == []
    # A stranger, and the client that was named, who has an adapter of its own.
    assert names[:2] == ["ground truth", "shared model"] and "personalised" in names


def test_a_job_is_seen_at_work(head: OwnCluster, written: Path) -> None:
    """It would go on for ever, so that whoever looks finds it at work."""
    run = written.parent / "seen-run"
    changes = [f"run={run}", "rounds=10000", "local.steps=40", "evaluation.sample_every=10000"]
    there = ["--working-dir", str(written), "--no-wait", "--submission-id", "seen"]
    sent = fedtalk("submit", "train", "small.yaml", *changes, *there, at=head)
    assert sent.returncode == 0, sent.stderr
    try:
        it_is_seen_at_work(head, run)
    finally:
        stop = [str(BIN / "ray"), "job", "stop", "seen", "--address", head.dashboard_url]
        subprocess.run(stop, env=environment(), capture_output=True)


def test_ctrl_c_asks_and_stops_the_job(head: OwnCluster, written: Path) -> None:
    """At a real terminal."""
    long = ["run=" + str(written.parent / "stopped-run"), "local.steps=100000"]
    command = [str(BIN / "fedtalk"), "submit", "train", "small.yaml", *long, "--submission-id", "long"]
    terminal, inside = pty.openpty()
    job = subprocess.Popen(
        [*command, "--address", head.dashboard_url],
        cwd=written,
        env=environment(),
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=at_a_terminal,
    )
    os.close(inside)
    asked = [str(BIN / "ray"), "job", "status", "long", "--address", head.dashboard_url]
    try:
        read_until(terminal, "Running entrypoint")
        os.write(terminal, b"\x03")
        read_until(terminal, "stop job long? [y/N]")
        os.write(terminal, b"y\n")
        read_until(terminal, "job long was told to stop")
        assert job.wait(30) == 130
        deadline = time.monotonic() + 60
        while "was stopped" not in (said := told_by(asked)):
            assert time.monotonic() < deadline, said
    finally:
        job.kill()
        job.wait()
        os.close(terminal)
        # Once more for a job that nobody stopped: the head would work on.
        subprocess.run([asked[0], "job", "stop", *asked[3:]], env=environment(), capture_output=True)


def test_the_service_is_a_job_and_takes_its_replicas_with_it(
    head: OwnCluster, pretrained: Path, tmp_path: Path
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "tokens").write_text(TOKEN)
    options = ["--run", str(pretrained), "--host", "0.0.0.0", "--port", str(port), "--tokens", str(tmp_path / "tokens")]
    there = ["--working-dir", str(tmp_path), "--no-wait", "--submission-id", "app"]
    sent = fedtalk("submit", "app", *options, "--replicas", "1", *there, at=head)
    assert sent.returncode == 0, sent.stderr
    stop = [str(BIN / "ray"), "job", "stop", "app", "--address", head.dashboard_url]
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {TOKEN}"

        def answers() -> bool:
            with contextlib.suppress(requests.ConnectionError):
                return session.get(f"http://127.0.0.1:{port}/v1/health").ok
            return False

        def deployed() -> dict[str, Any]:
            told = session.get(f"{head.dashboard_url}/api/serve/applications/").json()
            return dict(told["applications"])

        try:
            until(answers, 120)
            assert "gradio" in session.get(f"http://127.0.0.1:{port}/").text
            video = session.post(f"http://127.0.0.1:{port}/v1/generate", files=form())
            assert video.status_code == 200 and len(frames_of(video.content, tmp_path)) == 13
            assert len(deployed()) == 1
        finally:
            subprocess.run(stop, env=environment(), capture_output=True)
        until(lambda: not answers() and not deployed(), 60)
        # Serve itself stays for whoever uses it next; this head is to end at once.
        assert session.delete(f"{head.dashboard_url}/api/serve/applications/").ok


def it_is_seen_at_work(head: OwnCluster, run: Path) -> None:
    """`status` names a slot with its round and client, the server and the node; Prometheus' series are there."""
    says = {
        "the node": r"^nodes: 1\n  \S+  alive  2 CPU, 8 GiB  head$",
        "the round": rf"^run {run}: round [1-9]\d* of 10000",
        "a slot at work": r"seen-run-[0-9a-f]{4}\.slot-\d+ .*alive .* pid \d+  fit: round [1-9]\d*, id000\d$",
        "the server": r"seen-run-[0-9a-f]{4}\.server-\d+ .*alive",
    }
    series = {"fedtalk_round", "fedtalk_cohort", "fedtalk_survivors", "fedtalk_loss", "fedtalk_stage_seconds"}
    series |= set(COUNTERS)
    missing, found, calls, status = dict(says), set(), set(), ""
    deadline = time.monotonic() + 180
    while missing or not series <= found or "slot.fit" not in calls:
        assert time.monotonic() < deadline, (list(missing), series - found, calls, status)
        time.sleep(3)  # each look starts a process, on the cores that the job needs
        status = fedtalk("status", str(run), at=head).stdout
        missing = {what: text for what, text in missing.items() if not re.search(text, status, re.MULTILINE)}
        with urlopen(head.metrics_url) as page:
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


def told_by(command: list[str]) -> str:
    return subprocess.run(command, env=environment(), capture_output=True, text=True).stdout


def read_until(terminal: int, words: str, seconds: float = 60) -> None:
    text, deadline = "", time.monotonic() + seconds
    while words not in text:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no {words!r} in:\n{text}"
        try:
            text += os.read(terminal, 4096).decode(errors="replace")
        except OSError:
            raise AssertionError(f"the command ended without {words!r}:\n{text}") from None


def test_a_failing_job_ends_with_its_own_exit_code(head: OwnCluster, written: Path) -> None:
    config = ["small.yaml", "run=/nowhere/run", "shards=/nowhere/shards"]
    failed = fedtalk("submit", "train", *config, "--working-dir", str(written), at=head)
    assert failed.returncode == 1
    assert "fedtalk: " in failed.stdout and "/nowhere/shards" in failed.stdout
    assert re.search(r"^job raysubmit_\w+ failed: .*exit", failed.stderr, re.MULTILINE | re.IGNORECASE), failed.stderr


def test_the_recipes_are_jobs_too(head: OwnCluster, repository: Path) -> None:
    """As people submit by Ray's own command, from a clone."""
    command = [str(BIN / "ray"), "job", "submit", "--address", head.dashboard_url, "--working-dir", "."]
    command += ["--", "python", "jobs/prepare.py", "jobs/configs/prepare.yaml", "--root", "/nowhere/grid"]
    failed = subprocess.run(command, cwd=repository, env=environment(), capture_output=True, text=True, timeout=240)
    assert failed.returncode == 1
    said = failed.stdout + failed.stderr
    assert "fedtalk: corpus folder /nowhere/grid does not exist" in said, said


def test_what_the_head_refuses_is_one_line(head: OwnCluster, written: Path, tmp_path: Path) -> None:
    there = ("--working-dir", str(written))
    arguments = ("submit", "train", "small.yaml", "run=/nowhere/r", "shards=/nowhere/s", *there, "--no-wait")
    assert fedtalk(*arguments, "--submission-id", "mine", at=head).returncode == 0
    (tmp_path / "clips.bin").write_bytes(os.urandom(LIMIT + (1 << 20)))
    (tmp_path / "small.yaml").write_text((written / "small.yaml").read_text())
    large = (*arguments[:5], "--working-dir", str(tmp_path))
    cases = (
        (fedtalk(*arguments, "--submission-id", "mine", at=head), "the cluster has a job mine already"),
        (fedtalk(*arguments, at=head, token="another-token-that-is-not-the-heads"), "refused the token"),
        (fedtalk(*large, at=head), "Its largest entries: clips.bin 61 MiB"),
    )
    for done, says in cases:
        assert done.returncode == 1 and done.stdout == "", done
        assert done.stderr.startswith("fedtalk: ") and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
