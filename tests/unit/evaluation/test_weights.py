import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

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
def silent() -> Iterator[str]:
    """A server that takes the call and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/net.pth"


def test_silence_is_not_waited_for_and_a_cached_file_needs_no_server(silent: str, empty_hub: Path) -> None:
    assert not obtainable(silent, wait=0.2)
    with impatient(0.2), pytest.raises(OSError):
        urllib.request.urlopen(silent)
    assert socket.getdefaulttimeout() is None
    (empty_hub / "net.pth").write_bytes(b"x")
    assert obtainable(silent)


def test_what_answers_will_do_unless_told_to_stay_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.pth").write_bytes(b"x")
    assert obtainable((tmp_path / "net.pth").as_uri()) and not obtainable((tmp_path / "absent.pth").as_uri())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not obtainable((tmp_path / "net.pth").as_uri())
