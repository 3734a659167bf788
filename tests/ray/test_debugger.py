"""The steps of docs/debugging.md with Ray's terminal debugger: into a client at a breakpoint, and at an exception."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.own_cluster import ENVIRONMENT, RAY

STEPS = ENVIRONMENT | {"RAY_DEBUG": "legacy"}


class Terminal:
    """A command, typed into and read from."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=cwd, env=STEPS, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.text = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while byte := self.process.stdout.read(1):
            self.text += byte.decode(errors="replace")

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def until(self, pattern: str, after: int = 0, seconds: float = 90) -> re.Match[str]:
        """Waits until the text from `after` on has the pattern."""
        deadline = time.monotonic() + seconds
        while not (found := re.compile(pattern).search(self.text, after)):
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{self.text}"
            time.sleep(0.1)
        return found


@pytest.fixture
def terminals(repository: Path) -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.process.kill()
        terminal.process.wait()


def test_a_client_is_entered_at_a_breakpoint_and_after_an_exception(
    terminals: list[Terminal], repository: Path, tmp_path: Path
) -> None:
    driver = Terminal([sys.executable, "-m", "tests.ray.debugged", str(tmp_path / "run")], repository)
    terminals.append(driver)
    address = driver.until(r"ray debug --address (\S+)")[1]
    driver.until("RemotePdb session open")
    debugger = Terminal([RAY, "debug", "--address", address], repository)
    terminals.append(debugger)
    debugger.until(r"ray::slot\.fit.*debugged\.py")
    debugger.type("0")
    debugger.until(r"\(Pdb\)")
    debugger.type("p client, round_number")
    debugger.until(r"\('s23', 1\)")
    # The slot of a local cluster has the environment that `connect` means it to have.
    seen = len(debugger.text)
    debugger.type("p __import__('os').environ['MALLOC_TRIM_THRESHOLD_']")
    debugger.until(f"'{64 << 20}'", seen)
    debugger.type("c")
    driver.until(re.escape("round 1: [['s1'], ['s23']]"))
    # Round 2: nobody set a breakpoint, and the slot waits in the frame that raised.
    driver.until("RemotePdb session open", driver.text.index("round 1:"))
    seen = len(debugger.text)
    debugger.type("")
    debugger.until("s23 is broken", seen)
    debugger.type("0")
    debugger.until(r"-> raise ValueError", seen)
    debugger.type("p clients")
    debugger.until(r"\['s23'\]", seen)
    debugger.type("q")
    assert driver.process.wait(60) == 1
    assert "ValueError: s23 is broken" in driver.text
