"""Submitting jobs: what is refused before anything is sent, and what a cluster may answer, from a small HTTP server."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
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
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def version(number: str) -> dict[str, tuple[int, Any]]:
    return {"/api/version": (200, {"version": "4", "ray_version": number, "ray_commit": "x", "session_name": "s"})}


def test_a_cluster_of_another_version_is_named_with_both(serve: Serve) -> None:
    with pytest.raises(ClusterError, match=rf"runs Ray 2\.9\.1, this is Ray {ray.__version__}.*install ray==2\.9\.1"):
        connect_jobs(serve(version("2.9.1")))


@pytest.mark.parametrize(("code", "says"), [(401, "refused the token"), (403, "refused the token")])
def test_a_token_that_is_missing_or_wrong_is_told(serve: Serve, code: int, says: str) -> None:
    with pytest.raises(ClusterError, match=f"{says}.*RAY_AUTH_MODE=token") as caught:
        connect_jobs(serve({"/api/version": (code, "Forbidden")}))
    assert "\n" not in str(caught.value)


def test_nobody_at_the_address_and_an_address_of_another_kind_are_told(serve: Serve) -> None:
    with pytest.raises(ClusterError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:9"):
        connect_jobs("http://127.0.0.1:9")
    with pytest.raises(
        ClusterError, match=r"127\.0\.0\.1:6379 is no dashboard's address; give one as http://HEAD:8265"
    ):
        connect_jobs("127.0.0.1:6379")
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


def checked(folder: Path, task: str, *arguments: str) -> None:
    """As `fedtalk submit` does it: the command's own parser first."""
    _, *options = expanded(GROUP, [task, *arguments], folder)
    check_arguments(task, GROUP.commands[task].make_context(task, options).params, folder)


def test_places_that_a_job_would_lose_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run: runs/a\nshards: /nfs/shards\npretrained: fedtalk-tiny\n")
    with pytest.raises(ConfigError, match=r"run is 'runs/a': a job runs in a copy .* absolute path"):
        checked(tmp_path, "train", "c.yaml")
    checked(tmp_path, "train", "c.yaml", "run=/nfs/a", "shards=s3://bucket/shards", "--resume")
    with pytest.raises(ConfigError, match="shards is 'here'"):
        checked(tmp_path, "train", "c.yaml", "run=/nfs/a", "shards=here")
    (tmp_path / "models").mkdir()
    with pytest.raises(ConfigError, match="pretrained is 'models'"):
        checked(tmp_path, "train", "c.yaml", "run=/nfs/a", "pretrained=models")
    checked(tmp_path, "train", "c.yaml", "run=/nfs/a", "pretrained=someone/on-the-hub")
    with pytest.raises(ConfigError, match="--out is 'shards/grid'"):
        checked(tmp_path, "prepare", "--corpus", "grid", "--out", "shards/grid")
    checked(tmp_path, "prepare", "--corpus", "grid", "--root", "/nfs/grid", "--out=/nfs/shards")
    with pytest.raises(ConfigError, match="--run is 'runs/grid'"):
        checked(tmp_path, "report", "--client", "s1", "runs/grid")
    checked(tmp_path, "report", "--client", "s1", "/nfs/runs/grid")


def test_a_recipe_is_the_one_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "prepare.yaml").write_text("corpus: grid\nroot: data/grid\nout: /nfs/shards\n")
    with pytest.raises(ConfigError, match="--root is 'data/grid'"):
        checked(tmp_path, "prepare", "prepare.yaml")
    # What follows the file wins.
    checked(tmp_path, "prepare", "prepare.yaml", "--root", "/nfs/grid")


def test_experiments_are_looked_into(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[3] / "jobs/configs/compare/methods.yaml"
    (tmp_path / "e.yaml").write_text(shipped.read_text())
    with pytest.raises(ConfigError, match="out is 'runs/"):
        checked(tmp_path, "compare", "e.yaml")
    with pytest.raises(ConfigError, match="shards is 'shards/"):
        checked(tmp_path, "compare", "e.yaml", "--out=/nfs/e")
    checked(tmp_path, "compare", "e.yaml", "shards=/nfs/shards", "--out=/nfs/e")


def test_configurations_are_read_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run: /nfs/a\nshards: /nfs/s\npretrained: p\nlocal: {stepz: 3}\n")
    with pytest.raises(ConfigError, match="the nearest valid key is 'steps'"):
        checked(tmp_path, "train", "c.yaml")
    with pytest.raises(ConfigError, match=r"\.\./c\.yaml is not in the working directory"):
        checked(tmp_path, "train", "../c.yaml")
    (tmp_path / "l.yaml").write_text("run: /nfs/a\nshards: /nfs/s\npretrained: p\naddress: local\n")
    with pytest.raises(ConfigError, match="address is 'local'"):
        checked(tmp_path, "train", "l.yaml")
    # One that only the cluster has is left to it.
    checked(tmp_path, "train", "/nfs/elsewhere.yaml")


class Interrupted:
    """A job whose user presses Ctrl-C while its log runs."""

    def __init__(self) -> None:
        self.stopped: list[str] = []

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "train: 1 of 10\n"
        raise KeyboardInterrupt

    def get_address(self) -> str:
        return "http://head"

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)


class FailsAtTheEnd(Interrupted):
    """Ctrl-C ends the connection, and the connection breaks over it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "train: 1 of 10\n"
        try:
            raise asyncio.CancelledError
        except asyncio.CancelledError:
            raise self.error  # noqa: B904


@pytest.mark.parametrize("error", [RuntimeError("closed with code 1006"), asyncio.CancelledError()])
def test_a_connection_that_breaks_over_ctrl_c_is_no_lost_connection(error: BaseException) -> None:
    client = FailsAtTheEnd(error)
    assert follow(client, "mine", lambda _: True, io.StringIO()) == 130  # type: ignore[arg-type]
    assert client.stopped == ["mine"]


@pytest.mark.parametrize(("answer", "stopped"), [(True, ["mine"]), (False, []), (None, [])])
def test_who_lets_go_of_a_job_is_asked_whether_to_stop_it(answer: bool | None, stopped: list[str]) -> None:
    """None: there is nobody to ask, and the job goes on."""
    client, out, asked = Interrupted(), io.StringIO(), []

    def ask(question: str) -> bool:
        asked.append(question)
        return bool(answer)

    code = follow(client, "mine", None if answer is None else ask, out)  # type: ignore[arg-type]
    assert (code, client.stopped, out.getvalue()) == (130, stopped, "train: 1 of 10\n")
    assert asked == ([] if answer is None else ["stop job mine?"])


class Ended:
    """A job that has ended."""

    def __init__(self, code: int | None) -> None:
        self._code = code

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "log\n"

    def get_address(self) -> str:
        return "http://head"

    def get_job_info(self, job: str) -> Any:
        status = JobStatus.SUCCEEDED if self._code == 0 else JobStatus.FAILED
        return SimpleNamespace(status=status, driver_exit_code=self._code, message="Job entrypoint failed")


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (3, 3), (None, 1)])
def test_the_exit_code_is_the_commands_own(code: int | None, ends: int) -> None:
    """None: the command never ran."""
    assert follow(Ended(code), "mine", None, io.StringIO()) == ends  # type: ignore[arg-type]


def test_a_lost_connection_is_told_and_the_job_goes_on() -> None:
    class Lost(Ended):
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "log\n"
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    with pytest.raises(
        ClusterError, match=r"lost \(RuntimeError\).*the job goes on; .*--follow mine --address http://head"
    ):
        follow(Lost(0), "mine", None, io.StringIO())  # type: ignore[arg-type]


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
