"""Submitting jobs: what is refused before anything is sent, and what a cluster may answer, from a small HTTP server."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import ray

from fedtalk_ray.cli import main
from fedtalk_ray.errors import ClusterError, ConfigError
from fedtalk_ray.submit import check_arguments, connect_jobs, submit

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


def test_places_that_a_job_would_lose_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run: runs/a\nshards: /nfs/shards\npretrained: fedtalk-tiny\n")
    with pytest.raises(ConfigError, match=r"run is 'runs/a': a job runs in a copy .* absolute path"):
        check_arguments("train", ["c.yaml"], tmp_path, ["c.yaml"])
    check_arguments("train", ["c.yaml", "run=/nfs/a"], tmp_path, ["c.yaml", "run=/nfs/a"])
    with pytest.raises(ConfigError, match="shards is 'here'"):
        check_arguments("train", ["c.yaml", "run=/nfs/a", "shards=here"], tmp_path, [])
    with pytest.raises(ConfigError, match="--out is 'shards/grid'"):
        check_arguments("prepare", [], tmp_path, ["--corpus", "grid", "--out", "shards/grid"])
    check_arguments("prepare", [], tmp_path, ["--root", "s3://bucket/grid", "--out=/nfs/shards"])
    # A recipe's own is overridden by what follows it.
    check_arguments("prepare", [], tmp_path, ["--root", "data/grid", "--root", "/nfs/grid"])


def test_configurations_are_read_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run: /nfs/a\nshards: /nfs/s\npretrained: p\nlocal: {stepz: 3}\n")
    with pytest.raises(ConfigError, match="the nearest valid key is 'steps'"):
        check_arguments("train", ["c.yaml"], tmp_path, [])
    with pytest.raises(ConfigError, match=r"\.\./c\.yaml is not in the working directory"):
        check_arguments("train", ["../c.yaml"], tmp_path, [])
    with pytest.raises(ConfigError, match=r"'tain' is no job; jobs are: .*train"):
        check_arguments("tain", [], tmp_path, [])


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
