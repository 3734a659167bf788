"""Connecting: addresses that no cluster answers at are told within seconds, before Ray waits for minutes."""

import os
import socket
from time import monotonic

import pytest

from fedtalk_ray.actors.cluster import _environment, connect
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


def test_the_drivers_own_environment_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTALK_HERE", "before")
    monkeypatch.delenv("FEDTALK_NEW", raising=False)
    with pytest.raises(ValueError), _environment({"FEDTALK_HERE": "meanwhile", "FEDTALK_NEW": "1"}):
        assert (os.environ["FEDTALK_HERE"], os.environ["FEDTALK_NEW"]) == ("meanwhile", "1")
        raise ValueError
    assert os.environ["FEDTALK_HERE"] == "before" and "FEDTALK_NEW" not in os.environ
