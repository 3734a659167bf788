"""Sites at lines of their own: what they teach over slow ones, and faults at stages that a seed draws, eight, and with
FEDTALK_LONG=1 sixty."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedtalk_ray.runs.history import read_history
from tests.nightly.conftest import LONG
from tests.ray.checks_of_sites import check_books, check_clock, check_nothing_twice, check_sum, check_wire
from tests.ray.conftest import Make
from tests.ray.faults_of_sites import run_under_faults
from tests.ray.own_federation import OwnFederation

pytestmark = pytest.mark.timeout(5400)

SITES, ROUNDS = 7, 8 if LONG else 3
FAULTS, ROUNDS_OF_FAULTS = (60, 110) if LONG else (8, 18)


@pytest.fixture
def federation(tmp_path: Path, shards: Path) -> Iterator[OwnFederation]:
    made = OwnFederation(tmp_path, shards)
    yield made
    made.close()


def test_seven_sites_teach_what_seven_clients_teach(make_config: Make, federation: OwnFederation, shards: Path) -> None:
    """Over lines of 50 ms and 20 Mbit/s; prints what a round took."""
    sites = federation.sites(SITES)
    for line in federation.lines.values():
        line.delay, line.rate = 0.05, 2.5e6
    # The model is the mean over all rounds, so that the checkpoint of each stays.
    config = federation.config(make_config, rounds=ROUNDS, cohort={"size": SITES}, server={"average": ROUNDS})
    all_left_well = federation.start(sites)
    run = federation.serve(config)
    assert all_left_well()
    history = read_history(run.history_file)
    print([(record["seconds"], record["stage_seconds"]) for record in history])
    assert [record["survivors"] for record in history] == [SITES] * ROUNDS
    check_wire(check_sum(federation, config, run, shards, sites), sites, ROUNDS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a site a disk of its own")
def test_whatever_happens_nothing_is_counted_or_answered_twice(make_config: Make, federation: OwnFederation) -> None:
    """While every line delays by 20 ms; the last two sites' clocks are an hour off."""
    sites = federation.sites(SITES, own_disk=True)
    for line in federation.lines.values():
        line.delay = 0.02
    tree = {"rounds": ROUNDS_OF_FAULTS, "cohort": {"size": SITES}, "failures": {"quorum": 0.3}}
    config = federation.config(make_config, **tree)
    federation.own_disk()
    *others, early, late = sites
    left_well = [
        federation.start(others, light=True),
        federation.start([early], light=True, clock="+1h"),
        federation.start([late], light=True, clock="-1h"),
    ]
    run = run_under_faults(federation, config, sites[1:], count=FAULTS, seed=2)
    assert all(each() for each in left_well)
    check_clock([early], 3600)
    check_clock([late], -3600)
    history = read_history(run.history_file)
    assert [record["round"] for record in history] == list(range(1, ROUNDS_OF_FAULTS + 1))
    check_nothing_twice(sites)
    check_books(sites, history)
