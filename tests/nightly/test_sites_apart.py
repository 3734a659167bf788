"""Sites on hosts of their own with clips of GRID: what they teach, sixty faults, and what being apart costs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from fedtalk_ray.corpora.listing import list_corpus
from fedtalk_ray.rounds import train
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import read_history
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.prepare import prepare
from tests.ray.checks_of_sites import check_books, check_clock, check_nothing_twice, check_sum, check_wire
from tests.ray.faults_of_sites import run_under_faults
from tests.ray.own_federation import PRIVACY, OwnFederation
from tests.ray.own_hosts import Hosts, refusal

pytestmark = [pytest.mark.timeout(5400), pytest.mark.grid]

Make = Callable[..., TrainConfig]

SITES, ROUNDS = 8, 8
PEOPLE = ("s1", "s2", "s22", "s23", "s26", "s3", "s31", "s5", "s14")
"""Of GRID, those with two clips at least; the last one is nobody's client."""


@pytest.fixture(scope="module")
def people(ray_cluster: None, grid_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of nine speakers, three clips each at most."""
    out = tmp_path_factory.mktemp("data") / "people"
    listed = list_corpus("grid", grid_root)
    sources = [clip for who in PEOPLE for clip in [each for each in listed if each.identity == who][:3]]
    prepare("grid", sources, out, size=32, autoencoder="patch", unseen=PEOPLE[-1:])
    return out


@pytest.fixture
def federation(tmp_path: Path, people: Path) -> Iterator[OwnFederation]:
    if why := refusal():
        pytest.skip(why)
    made = OwnFederation(tmp_path, people, Hosts(SITES))
    yield made
    made.close()


def test_eight_sites_teach_what_eight_clients_teach(make_config: Make, federation: OwnFederation, people: Path) -> None:
    sites = federation.sites(SITES)
    # The model is the mean over all rounds, so that the checkpoint of each stays.
    config = federation.config(make_config, rounds=ROUNDS, cohort={"size": SITES}, server={"average": ROUNDS})
    all_left_well = federation.start(sites)
    run = federation.serve(config)
    assert all_left_well()
    assert [record["survivors"] for record in read_history(run.history_file)] == [SITES] * ROUNDS
    slot = check_sum(federation, config, run, people, sites)
    check_wire(federation, slot, sites, ROUNDS)


def test_sixty_faults_count_nothing_twice(make_config: Make, federation: OwnFederation) -> None:
    """Of seven sites, two of whose clocks are an hour off, while every line delays by 20 ms, and another one's loses
    three packets of ten."""
    assert federation.hosts is not None
    for line in federation.hosts.lines:
        line.delay = 0.02
    federation.hosts.lines[0].loss = 0.3
    sites = federation.sites(SITES, own_disk=True)
    config = federation.config(make_config, cohort={"size": SITES}, rounds=110, failures={"quorum": 0.3})
    federation.own_disk()
    early, late = [sites[6]], [sites[7]]
    left_well = [
        federation.start(sites[:6], light=True),
        federation.start(early, light=True, clock="+1h"),
        federation.start(late, light=True, clock="-1h"),
    ]
    run = run_under_faults(federation, config, sites[1:], count=60, seed=2)
    assert all(each() for each in left_well)
    check_clock(early, 3600)
    check_clock(late, -3600)
    history = read_history(run.history_file)
    assert [record["round"] for record in history] == list(range(1, 111))
    check_nothing_twice(sites)
    check_books(sites, history)


@pytest.mark.parametrize(("delay", "rate"), [(0.0, 0.0), (0.05, 2.5e6)], ids=["idle", "50 ms and 20 Mbit/s"])
def test_what_being_apart_costs(
    make_config: Make, federation: OwnFederation, people: Path, delay: float, rate: float, capsys: Any
) -> None:
    """The same eight clients in eight slots of this machine, and in eight sites: seconds a round, printed."""
    assert federation.hosts is not None
    for line in federation.hosts.lines:
        line.delay, line.rate = delay, rate
    tree = {"rounds": ROUNDS, "cohort": {"size": SITES}}
    sites = federation.sites(SITES)
    all_left_well = federation.start(sites)
    run = federation.serve(federation.config(make_config, **tree))
    assert all_left_well()
    slots = make_config(
        federation.folder / "slots",
        shards=str(people),
        aggregation="secure",
        privacy=PRIVACY,
        server={},
        slots={"count": SITES, "num_cpus": 0.25},
        **tree,
    )
    train(slots)
    with capsys.disabled():
        print()
        for name, history in (("sites", run.history_file), ("slots", RunFolder(Path(slots.run)).history_file)):
            records = read_history(history)[1:]
            stages = {
                stage: round(median(record["stage_seconds"][stage] for record in records), 2)
                for stage in records[0]["stage_seconds"]
            }
            seconds = median(record["seconds"] for record in records)
            print(f"{name}, delay {delay:g} s, rate {rate:g} B/s: {seconds:.2f} s a round; {stages}")
