"""Many connections that say nothing, half a word or half a request keep nobody out."""

import contextlib
import os
import resource
import socket
import ssl

import pytest

from fedtalk_ray.coordinator.http import MOST_ASKING
from fedtalk_ray.enrolment.invite import request_of
from fedtalk_ray.privacy.keys import SigningKey
from tests.unit.coordinator.conftest import Standing

COUNT = int(os.environ.get("FEDTALK_CASES", "400"))
HEAD = b"POST /v1/requests HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400\r\n\r\n"


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01", HEAD], ids=["nothing", "half a hello", "no body"])
def test_silent_connections_keep_nobody_out(standing: Standing, said: bytes) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context = ssl.create_default_context(cafile=str(standing.files.authority))
    with contextlib.ExitStack() as silent:
        for _ in range(MOST_ASKING + 6 if said == HEAD else COUNT):
            line = silent.enter_context(socket.create_connection(("127.0.0.1", standing.port), timeout=30))
            if said == HEAD:
                line = silent.enter_context(context.wrap_socket(line, server_hostname="localhost"))
            line.sendall(said)
        key = SigningKey.generate()
        assert standing.line("s1", key).ask_for_membership(request_of(standing.authority.invite("s1"), key)) == ""
