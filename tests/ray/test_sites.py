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
from tests.ray.checks_of_sites import check_books, check_nothing_twice, check_sum, check_wire
from tests.ray.conftest import Make
from tests.ray.own_federation import PRIVACY, OwnFederation
from tests.ray.sites_at_work import KILLED, Beside


@pytest.fixture
def federation(tmp_path: Path, shards: Path) -> Iterator[OwnFederation]:
    made = OwnFederation(tmp_path, shards)
    yield made
    made.close()


def test_sites_teach_what_the_same_clients_teach_and_tell_no_more_though_one_dies(
    make_config: Make, federation: OwnFederation, shards: Path
) -> None:
    """Two rounds over HTTPS, against plain weighted means worked out in one process; and everything that was sent. One
    of seven sites agrees to sums of eight alone; another one dies in round 2, charged and unheard, and comes back."""
    sites = federation.sites(7, {6: "fewest_survivors: 8\n"})
    willing, (dying, refusing) = sites[:6], sites[5:]
    # Scores are far apart here, and what one client may claim from round 2 on is not what is looked at.
    config = federation.config(make_config, cohort={"size": 7}, privacy=PRIVACY | {"most_weight": None})
    Beside(dying.path).meets.write_text(f"mask {KILLED} 2")
    all_left_well = federation.start(sites)
    run = federation.serve(config)
    assert all_left_well()
    history = read_history(run.history_file)
    assert [record["survivors"] for record in history] == [6, 5]
    assert [record["sites"] for record in history] == [{"on_line": 7, "members": 7}] * 2
    slot = check_sum(federation, config, run, shards, willing, {2: dying.name})
    check_wire(slot, willing, 2, dying)
    check_nothing_twice(sites)
    check_books(willing, history)
    assert [record["refused"]["not agreed to"] for record in history] == [1, 1]
    assert Beside(refusing.path).said.read_text().count("not taken part in: fewest survivors is 2") == 1
    assert not refusing.ledger.exists()
    line = rf"{refusing.name} refuses train of exchange \d+: not agreed to: fewest survivors is 2, this site asks for 8"
    assert len(re.findall(line, run.coordinator_log.read_text())) == 2


def test_an_entrance_that_is_closed_for_good_is_one_line(
    ray_cluster: None, make_config: Make, federation: OwnFederation
) -> None:
    """Where no door comes back, or the gate is gone, nobody waits for sites that cannot come in."""
    files = federation.authority.coordinator
    entrance = Coordinator(files, "127.0.0.1", 0, doors=2).open(federation.config(make_config))
    try:
        for door, still_open in zip(entrance.doors.actors, entrance.doors._open, strict=True):
            assert entrance.members() == files.signed_members()
            ray.kill(door)
            ray.wait([still_open], timeout=30)
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
