import http.server
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import pytest

from fedtalk_ray.evaluation.weights import impatient, obtainable


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder of files, empty; asking servers is allowed."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def server() -> Iterator[str]:
    """A server on this machine that holds whatever there is in the working folder."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as answering:
        thread = threading.Thread(target=answering.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{answering.server_port}/"
        answering.shutdown()
        thread.join()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes the call and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/net.pth"


def test_a_cached_file_needs_no_server(empty_hub: Path, silent: str) -> None:
    (empty_hub / "net.pth").write_bytes(b"x")
    assert obtainable(silent)


def test_a_server_that_answers_will_do_unless_told_to_stay_offline(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pth").write_bytes(b"x")
    assert obtainable(server + "net.pth")
    assert not obtainable(server + "absent.pth")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not obtainable(server + "net.pth")


def test_silence_is_not_waited_for(silent: str) -> None:
    began = perf_counter()
    assert not obtainable(silent, wait=0.2)
    with impatient(0.2), pytest.raises(OSError):
        urllib.request.urlopen(silent)
    assert perf_counter() - began < 5
    assert socket.getdefaulttimeout() is None


def test_no_server_is_no_hang() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        free = listening.getsockname()[1]
    assert not obtainable(f"http://127.0.0.1:{free}/net.pth")
