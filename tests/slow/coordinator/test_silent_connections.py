"""Thousands of connections that say nothing, half a word or nonsense: what they cost, and whom they keep out."""

import re
import resource
import socket
import ssl
from pathlib import Path

import pytest

from tests.unit.coordinator.conftest import Standing

COUNT = 9_500


def memory(what: str) -> int:
    """VmRSS, now, or VmHWM, the most since it was cleared, in bytes."""
    found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "half a hello"])
def test_silent_connections_cost_little_and_keep_nobody_out(standing: Standing, said: bytes) -> None:
    """Both ends of each are in this process."""
    standing.member("s1")
    assert standing.line("s1").get("/v1/members")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * COUNT + 500:
        pytest.skip(f"{2 * COUNT + 500} open files are not allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    silent = []
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        for _ in range(COUNT):
            silent.append(socket.create_connection(("127.0.0.1", standing.port), timeout=30))
            silent[-1].sendall(said)
        assert standing.line("s1").get("/v1/members")
        grown = memory("VmHWM") - before
        assert grown < 100 << 20, f"{grown >> 20} MiB"
    finally:
        for each in silent:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("said", [b"", b"nonsense\r\n\r\n"], ids=["nothing", "nonsense"])
def test_who_shakes_hands_and_asks_for_nothing_is_soon_forgotten(standing: Standing, said: bytes) -> None:
    """A TLS connection is a quarter of a megabyte; of these a thousand come and go within seconds."""
    standing.member("s1")
    context = ssl.create_default_context(cafile=str(standing.files.authority))
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    for _ in range(1000):
        with (
            socket.create_connection(("127.0.0.1", standing.port), timeout=30) as bare,
            context.wrap_socket(bare, server_hostname="localhost") as stranger,
        ):
            stranger.sendall(said)
    assert standing.line("s1").get("/v1/members")
    grown = memory("VmHWM") - before
    assert grown < 60 << 20, f"{grown >> 20} MiB"
