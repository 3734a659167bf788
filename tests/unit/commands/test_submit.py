"""Submitting jobs: what is refused before anything is sent, and what a cluster may answer, from a small HTTP server."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.job_submission import JobStatus
from typer.main import get_command

from fedtalk_ray.commands.cli import app, main
from fedtalk_ray.commands.command_file import expanded
from fedtalk_ray.commands.submit import check_arguments, connect_jobs, follow, submit
from fedtalk_ray.errors import ClusterError, ConfigError

GROUP: Any = get_command(app)
SENT: list[dict[str, Any]] = []
"""Jobs that were sent to a dashboard."""
Serve = Callable[[dict[str, tuple[int, Any]]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A dashboard that gives these answers by the beginning of a path, as JSON or text; to any other, 404."""
    servers = []

    def start(answers: dict[str, tuple[int, Any]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = [path for path in answers if self.path.startswith(path)]
                code, body = answers[known[0]] if known else (404, "no such path")
                length = int(self.headers.get("Content-Length") or 0)
                if self.path == "/api/jobs/":
                    SENT.append(json.loads(self.rfile.read(length)))
                else:
                    self.rfile.read(length)
                self.send_response(code)
                self.end_headers()
                self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

            do_POST = do_PUT = do_GET

            def log_message(self, *_: object) -> None:
                """Nothing: the test's output is not the place."""

        server = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def version(number: str) -> dict[str, tuple[int, Any]]:
    return {"/api/version": (200, {"version": "4", "ray_version": number, "ray_commit": "x", "session_name": "s"})}


def test_a_dashboard_that_takes_no_jobs_from_here_is_one_line(serve: Serve) -> None:
    with pytest.raises(ClusterError, match=rf"runs Ray 2\.9\.1, this is Ray {ray.__version__}.*install ray==2\.9\.1"):
        connect_jobs(serve(version("2.9.1")))

    for code in (401, 403):
        with pytest.raises(ClusterError, match=r"refused the token.*RAY_AUTH_MODE=token") as caught:
            connect_jobs(serve({"/api/version": (code, "Forbidden")}))
        assert "\n" not in str(caught.value)
    with pytest.raises(ClusterError, match="does not take jobs"):
        connect_jobs(serve({}))


def test_a_job_id_that_is_taken_is_told(serve: Serve, tmp_path: Path) -> None:
    taken = "ValueError: Job with submission_id mine already exists. Please use a different submission_id."
    client = connect_jobs(serve(version(ray.__version__) | {"/api/packages/": (200, ""), "/api/jobs/": (500, taken)}))
    with pytest.raises(ClusterError, match="has a job mine already; leave out --submission-id or give another one"):
        submit(client, "train", ["x.yaml"], tmp_path, "mine")


def test_a_job_is_the_command_with_this_package_and_what_it_needs(serve: Serve, tmp_path: Path) -> None:
    for name in ("configs", "runs/a.clients/ann"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs/a.clients/ann/client.key").write_text("secret")
    accepted = {"job_id": "mine", "submission_id": "mine"}
    client = connect_jobs(
        serve(version(ray.__version__) | {"/api/packages/": (200, ""), "/api/jobs/": (200, accepted)})
    )
    assert submit(client, "pretrain", ["--out", "/nfs/a b"], tmp_path, gpus=0.5) == "mine"
    sent = SENT[-1]
    assert sent["entrypoint"] == "python -m fedtalk_ray.commands.cli pretrain --out '/nfs/a b'"
    assert sent["entrypoint_num_gpus"] == 0.5 and sent["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "1"
    # Nothing that a run keeps of its clients goes along: the package is named by what is in it.
    before = sent["runtime_env"]["working_dir"]
    (tmp_path / "runs/a.clients/ann/client.key").write_text("another secret")
    submit(client, "pretrain", [], tmp_path)
    assert SENT[-1]["runtime_env"]["working_dir"] == before
    (tmp_path / "configs" / "c.yaml").write_text("rounds: 3")
    submit(client, "pretrain", [], tmp_path)
    assert SENT[-1]["runtime_env"]["working_dir"] != before


FILES = {
    "c.yaml": "run: runs/a\nshards: /nfs/shards\npretrained: fedtalk-tiny\n",
    "wrong.yaml": "run: /nfs/a\nshards: /nfs/s\npretrained: p\nlocal: {stepz: 3}\n",
    "local.yaml": "run: /nfs/a\nshards: /nfs/s\npretrained: p\naddress: local\n",
    "prepare.yaml": "corpus: grid\nroot: data/grid\nout: /nfs/shards\n",
    "e.yaml": (Path(__file__).parents[3] / "jobs/configs/compare/methods.yaml").read_text(),
}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train c.yaml", "run is 'runs/a': a job runs in a copy"),
        ("train c.yaml run=/nfs/a shards=s3://bucket/shards --resume", None),
        ("train c.yaml run=/nfs/a shards=here", "shards is 'here'"),
        ("train c.yaml run=/nfs/a pretrained=someone/on-the-hub", None),
        ("train wrong.yaml", "the nearest valid key is 'steps'"),
        ("train ../c.yaml", "../c.yaml is not in the working directory"),
        ("train local.yaml", "address is 'local'"),
        ("prepare --corpus grid --out shards/grid", "--out is 'shards/grid'"),
        ("prepare --corpus grid --root /nfs/grid --out=/nfs/shards", None),
        ("prepare prepare.yaml", "--root is 'data/grid'"),
        ("prepare prepare.yaml --root /nfs/grid", None),
        ("report --client s1 runs/grid", "--run is 'runs/grid'"),
        ("compare e.yaml --out=/nfs/e", "shards is 'shards/"),
        ("compare e.yaml shards=/nfs/shards --out=/nfs/e", None),
    ],
)
def test_places_that_a_job_would_lose_are_refused(tmp_path: Path, arguments: str, said: str | None) -> None:
    """As `fedtalk submit` does it: the command's own parser first. What the cluster alone has is left to it."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)) if said else nullcontext():
        task, *options = expanded(GROUP, arguments.split(), tmp_path)
        check_arguments(task, GROUP.commands[task].make_context(task, options).params, tmp_path)


class Job:
    """One that has ended with this code, None where it never ran; or whose log breaks off, as Ctrl-C does it or not."""

    def __init__(self, code: int | None = None, error: BaseException | None = None, cancelled: bool = False) -> None:
        self._code, self._error, self._cancelled = code, error, cancelled
        self.stopped: list[str] = []

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "log\n"
        try:
            if self._cancelled:
                raise asyncio.CancelledError
        finally:
            if self._error:
                raise self._error

    def get_address(self) -> str:
        return "http://head"

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)

    def get_job_info(self, job: str) -> Any:
        status = JobStatus.SUCCEEDED if self._code == 0 else JobStatus.FAILED
        return SimpleNamespace(status=status, driver_exit_code=self._code, message="Job entrypoint failed")


@pytest.mark.parametrize(
    ("job", "answer", "code", "stopped"),
    [
        (Job(0), None, 0, []),
        (Job(3), None, 3, []),
        (Job(None), None, 1, []),
        (Job(error=KeyboardInterrupt()), True, 130, ["mine"]),
        (Job(error=KeyboardInterrupt()), False, 130, []),
        (Job(error=KeyboardInterrupt()), None, 130, []),
        # A connection that breaks over Ctrl-C is no lost connection.
        (Job(error=RuntimeError("closed with code 1006"), cancelled=True), True, 130, ["mine"]),
    ],
)
def test_how_following_a_job_ends(job: Any, answer: bool | None, code: int, stopped: list[str]) -> None:
    """Who lets go of it is asked whether to stop it. None: there is nobody to ask, and it goes on."""
    out, asked = io.StringIO(), []

    def ask(question: str) -> bool:
        asked.append(question)
        return bool(answer)

    assert follow(job, "mine", None if answer is None else ask, out) == code
    assert (job.stopped, out.getvalue()) == (stopped, "log\n")
    assert asked == ([] if answer is None else ["stop job mine?"])


def test_a_lost_connection_is_told_and_the_job_goes_on() -> None:
    job: Any = Job(error=RuntimeError("WebSocket connection closed unexpectedly with close code 1006"))
    said = r"lost \(RuntimeError\).*the job goes on; .*--follow mine --address http://head"
    with pytest.raises(ClusterError, match=said):
        follow(job, "mine", None, io.StringIO())
    assert job.stopped == []


def test_the_command_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (tmp_path / "c.yaml").write_text("run: /nfs/a\nshards: /nfs/s\npretrained: p\n")
    with pytest.raises(SystemExit) as stopped:
        main(["submit", "train", "c.yaml", "--working-dir", str(tmp_path), "--address", "http://127.0.0.1:9"])
    printed = capsys.readouterr()
    assert stopped.value.code == 1 and printed.out == ""
    assert (
        printed.err.startswith("fedtalk: no Ray dashboard answers at http://127.0.0.1:9")
        and printed.err.count("\n") == 1
    )


def test_a_working_directory_that_is_too_large_is_told_with_what_fills_it(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(bytes(3 << 20))
    (tmp_path / "c.yaml").write_text("run: x")
    size = "Traceback ...\nValueError: Package size (600.00MiB) exceeds the maximum size of 500.00MiB. To exclude ..."
    client = connect_jobs(serve(version(ray.__version__) | {"/api/packages/": (500, size)}))
    with pytest.raises(ClusterError) as caught:
        submit(client, "train", ["c.yaml"], tmp_path)
    assert "Package size (600.00MiB) exceeds the maximum size of 500.00MiB. " in str(caught.value)
    assert "Its largest entries: clips 3 MiB, c.yaml 0 MiB. Name what" in str(caught.value)
