"""Addresses that no cluster answers at: told within seconds, before Ray waits for minutes."""

import socket
from time import monotonic

import pytest

from fedtalk_ray.actors.cluster import connect
from fedtalk_ray.errors import ClusterError


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "no-such-host.invalid:6379"])
def test_nobody_there_is_told_at_once(address: str) -> None:
    with socket.socket() as taken:
        # Bound and not listening: nobody else can be there.
        taken.bind(("127.0.0.1", 0))
        named = address.format(port=taken.getsockname()[1])
        started = monotonic()
        with pytest.raises(ClusterError, match=f"no Ray cluster answers at address '{named}': .*; is the head up?"):
            connect(named)
        assert monotonic() - started < 15


def test_a_dashboards_address_is_told_apart() -> None:
    with pytest.raises(ClusterError, match=r"is a dashboard's address, .*; name the cluster as host:port"):
        connect("http://127.0.0.1:8265")
