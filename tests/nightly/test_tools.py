"""Tools that are for people: the script for a card, and Ray's debugger as docs/debugging.md has it."""

import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.benchmarks import card
from tests.ray.own_cluster import ENVIRONMENT, RAY
from tests.served import until

DRIVER = """
import sys
import numpy as np
from fedtalk_ray.actors.connection import connect
from fedtalk_ray.actors.pool import SlotPool
from fedtalk_ray.config import parse_config

class Stops:
    ASKED = frozenset({"start", "fit"})

    def __init__(self, config):
        self.config = config

    def start(self):
        return np.zeros(3, np.float32)

    def fit(self, clients, round_number):
        client = clients[0]
        if client == "s23" and round_number == 1:
            breakpoint()
        if client == "s23" and round_number == 2:
            raise ValueError(f"{client} is broken")
        return clients

tree = {"run": sys.argv[1], "shards": "none", "pretrained": "none", "aggregation": "plain"}
config = parse_config(tree | {"debug": True, "address": "local"}, "test")
connect(config.address, debug=config.debug)
pool = SlotPool(config, Stops)
for number in (1, 2):
    outcomes = pool.run("fit", ["s1", "s23"], number)
    print(f"round {number}: {[outcome.result for outcome in outcomes]}", flush=True)
"""
"""Its slots meet a breakpoint in round 1 and an exception in round 2."""


def test_the_script_for_a_card_runs_on_a_cpu(ray_cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    card.main(["--small", "--steps", "1"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(("| tiny", "| MuseTalk"))]
    assert len(rows) == 6 and all(float(row.split("|")[2]) > 0 for row in rows)
    assert re.fullmatch(r"one slot takes [\d.]+ steps of tiny a second; two on halves [\d.]+ and [\d.]+", lines[-2])
    assert re.fullmatch(r"fedtalk-tiny makes [1-9]\d* frames a second \(crops\)", lines[-1])


class Terminal:
    """A command, typed into and read from."""

    def __init__(self, *command: str) -> None:
        more: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        environment = ENVIRONMENT | {"RAY_DEBUG": "legacy"}
        self.process = subprocess.Popen(command, env=environment, bufsize=0, start_new_session=True, **more)
        self.text = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while data := self.process.stdout.read(4096):
            self.text += data.decode(errors="replace")

    def type(self, line: str, answer: str) -> None:
        """Types a line and waits for what comes after it."""
        seen = len(self.text)
        self.process.stdin.write(f"{line}\n".encode())
        until(lambda: re.search(answer, self.text[seen:]), 90)


def test_a_client_is_entered_at_a_breakpoint_and_after_an_exception(tmp_path: Path) -> None:
    (tmp_path / "stops.py").write_text(DRIVER)
    driver = Terminal(sys.executable, str(tmp_path / "stops.py"), str(tmp_path / "run"))
    debugger = None
    try:
        until(lambda: "RemotePdb session open" in driver.text, 90)
        address = re.search(r"ray debug --address (\S+)", driver.text)
        assert address
        debugger = Terminal(RAY, "debug", "--address", address[1])
        until(lambda: re.search(r"ray::slot\.fit", debugger.text), 90)
        debugger.type("0", r"\(Pdb\)")
        debugger.type("p client, round_number", r"\('s23', 1\)")
        # The slot of a local cluster has the environment that `connect` means it to have.
        debugger.type("p __import__('os').environ['MALLOC_TRIM_THRESHOLD_']", f"'{64 << 20}'")
        debugger.type("c", "")
        until(lambda: "round 1: [['s1'], ['s23']]" in driver.text, 90)
        # Round 2: nobody set a breakpoint, and the slot waits in the frame that raised.
        until(lambda: "RemotePdb session open" in driver.text.partition("round 1:")[2], 90)
        debugger.type("", "s23 is broken")
        debugger.type("0", r"-> raise ValueError")
        debugger.type("p clients", r"\['s23'\]")
        debugger.type("q", "")
        assert driver.process.wait(60) == 1
        assert "ValueError: s23 is broken" in driver.text
    finally:
        for terminal in filter(None, (driver, debugger)):
            terminal.process.kill()
            terminal.process.wait()
