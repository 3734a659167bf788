"""Connecting: addresses that no cluster answers at are told within seconds, before Ray waits for minutes."""

import os
import socket
from pathlib import Path
from time import monotonic

import pytest
import ray

from fedtalk_ray.actors.connection import _environment, actor_name, connect, run_label
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


DASHBOARD = "\nThe last 20 lines of dashboard.log (it contains the error message from the dashboard): \n"


@pytest.mark.parametrize(
    "said", ["The current node timed out during startup. This could happen because ...", f"{DASHBOARD}\n"]
)
def test_a_machine_too_busy_to_start_ray_is_one_line(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception(said)

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match="Ray did not start in time: other programs have this machine's cores"):
        connect("local")
    # What has another reason is not told so.
    said = f"{DASHBOARD}ImportError: no module named aiohttp"
    with pytest.raises(Exception, match="ImportError"):
        connect("local")


def test_the_drivers_own_environment_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTALK_HERE", "before")
    monkeypatch.delenv("FEDTALK_NEW", raising=False)
    with pytest.raises(ValueError), _environment({"FEDTALK_HERE": "meanwhile", "FEDTALK_NEW": "1"}):
        assert (os.environ["FEDTALK_HERE"], os.environ["FEDTALK_NEW"]) == ("meanwhile", "1")
        raise ValueError
    assert os.environ["FEDTALK_HERE"] == "before" and "FEDTALK_NEW" not in os.environ


def test_runs_of_one_name_have_actors_of_different_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B17: every run of `compare` is called seed0, seed1, ..., and `status` showed the actors of all of them."""
    monkeypatch.chdir(tmp_path)
    labels = {run_label(f"out/{method}/seed0") for method in ("isfa", "fedavg")}
    assert len(labels) == 2 and all(label.startswith("seed0-") for label in labels)
    assert run_label("out/isfa/seed0") == run_label(tmp_path / "out" / "isfa" / "seed0") in labels
    names = {actor_name("out/isfa/seed0", "slot") for _ in range(3)}
    assert len(names) == 3 and all(name.startswith(f"{run_label('out/isfa/seed0')}.slot-") for name in names)
