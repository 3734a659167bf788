"""What people gave goes with its process, however that ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedtalk_ray.service.own_folder import own_folder

HOLDS = """
import sys, time
from fedtalk_ray.service.own_folder import own_folder
with own_folder("held-") as folder:
    (folder / "face.png").write_bytes(b"x")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_the_next_one_removes_and_nothing_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "held-by-nobody-of-ours").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with own_folder("held-"):
            assert (left / "face.png").is_file()
        process.send_signal(signal.SIGKILL)
    assert (left / "face.png").is_file()
    with own_folder("held-") as mine:
        (mine / "sub").mkdir()
        assert not left.exists() and mine.parent == tmp_path and mine.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["held-by-nobody-of-ours"]
