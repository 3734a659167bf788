"""A federation of sites over HTTPS: processes of their own, each with its own clips, against the bare sum."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from fedtalk_ray.actors.ray_errors import RoundLost
from fedtalk_ray.actors.site_pool import Coordinator
from fedtalk_ray.errors import ClusterError, ConfigError
from fedtalk_ray.runs.history import read_history
from tests.ray.checks_of_sites import (
    check_books,
    check_clock,
    check_nothing_twice,
    check_sum,
    check_wire,
    masked_exchanges,
)
from tests.ray.faults_of_sites import run_under_faults
from tests.ray.own_federation import PRIVACY, Make, OwnFederation
from tests.ray.own_hosts import Hosts, refusal
from tests.ray.sites_at_work import Beside

SITES = 7


@pytest.fixture(scope="module")
def no_hosts() -> str:
    return refusal()


@pytest.fixture
def federation(tmp_path: Path, crowd: Path, no_hosts: str) -> Iterator[OwnFederation]:
    made = OwnFederation(tmp_path, crowd, None if no_hosts else Hosts(SITES))
    yield made
    made.close()


def test_sites_teach_what_the_same_clients_teach_and_tell_no_more(
    make_config: Make, federation: OwnFederation, crowd: Path
) -> None:
    """Two rounds over HTTPS, against plain weighted means worked out in one process; and every byte that was sent."""
    sites = federation.sites(3)
    config = federation.config(make_config)
    all_left_well = federation.start(sites)
    run = federation.serve(config)
    assert all_left_well()
    history = read_history(run.history_file)
    assert [record["survivors"] for record in history] == [3, 3]
    assert [record["sites"] for record in history] == [{"on_line": 3, "members": 3}] * 2
    slot = check_sum(federation, config, run, crowd, sites)
    check_wire(federation, slot, sites, rounds=2)


def test_whatever_happens_nothing_is_counted_or_answered_twice(
    make_config: Make, federation: OwnFederation, no_hosts: str
) -> None:
    """A fault of each of eight kinds at stages that a seed draws; of seven sites one agrees to sums of eight alone, and
    another one's clock is an hour off."""
    if no_hosts:
        pytest.skip(no_hosts)
    sites = federation.sites(SITES, {5: "fewest_survivors: 8\n"}, own_disk=True)
    config = federation.config(make_config, cohort={"size": SITES}, rounds=18, failures={"quorum": 0.3})
    federation.own_disk()
    late, others = sites[6:], sites[:6]
    all_left_well = federation.start(others, light=True)
    late_left_well = federation.start(late, light=True, clock="-1h")
    willing = [site for place, site in enumerate(sites) if place != 5]
    run = run_under_faults(federation, config, willing, count=8, seed=1)
    assert all_left_well() and late_left_well()
    history = read_history(run.history_file)
    assert [record["round"] for record in history] == list(range(1, 19))
    check_clock(others, 0)
    check_clock(late, -3600)
    assert masked_exchanges(late[0])
    check_nothing_twice(sites)
    check_books(willing, history)
    refused = sites[5]
    # Once an exchange; of one that it heard of too late, on a machine with much to do, nothing.
    assert {record["refused"].get("not agreed to", 0) for record in history} in ({1}, {0, 1})
    assert Beside(refused.path).said.read_text().count("not taken part in: fewest survivors is 2") == 1
    assert not refused.ledger.exists()
    line = (
        rf"{refused.name} refuses train of exchange (\d+): not agreed to: fewest survivors is 2, this site asks for 8"
    )
    told = re.findall(line, run.coordinator_log.read_text())
    assert told and len(told) == len(set(told))


def test_an_entrance_that_is_closed_for_good_is_one_line(
    ray_cluster: None, make_config: Make, federation: OwnFederation
) -> None:
    """Where no door comes back, or the gate is gone, nobody waits for sites that cannot come in."""
    entrance = Coordinator(federation.authority.coordinator, "127.0.0.1", 0, doors=2).open(
        federation.config(make_config)
    )
    try:
        assert entrance.members() == federation.authority.coordinator.signed_members()
        first, second = entrance.doors.actors
        ray.kill(first)
        ray.wait([entrance.doors._open[0]], timeout=30)
        assert entrance.members()
        ray.kill(second)
        ray.wait([entrance.doors._open[1]], timeout=30)
        with pytest.raises(ClusterError, match=f"no door at port {entrance.doors.port} is open any more"):
            entrance.members()
        entrance.gate.kill()
        # A process that was told to end may still answer a last time.
        with pytest.raises(RoundLost, match="the gate to the sites was lost"):
            for _ in range(300):
                entrance.ask("newest_members")
                time.sleep(0.1)
    finally:
        entrance.doors.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"aggregation": "plain", "privacy": {}}, "sites take part in secure sums alone"),
        (
            {"privacy": PRIVACY | {"mechanism": "skellam", "noise_multiplier": 1.0}},
            "privacy.view release needs cohorts that nobody is told of",
        ),
    ],
)
def test_what_sites_cannot_hold_is_refused_before_anybody_is_asked(
    make_config: Make, federation: OwnFederation, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        federation.serve(federation.config(make_config, **changes))
    assert not federation.told and not (federation.folder / "run").exists()
