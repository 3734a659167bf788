"""The ledger against kill -9: whatever dies when, no charge is lost and none is made twice."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import get_epsilon_gaussian

from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.roster import RosterFile, extend_roster
from fedtalk_ray.federation.secure_aggregator import BudgetSpent, limits_of, make_codec
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.privacy.accounting import Noise, Rounds, epsilon
from fedtalk_ray.privacy.keys import Roster, SigningKey
from fedtalk_ray.privacy.ledger import Charge, Ledger
from fedtalk_ray.privacy.noise import system_rng
from fedtalk_ray.privacy.protocol import STAGES
from fedtalk_ray.privacy.secure_client import SecureClient, open_plan
from fedtalk_ray.recipe import PhaseName
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig

COHORT = ["a", "b", "c", "d"]
DIMENSION = 5


def config(*phases: str, **privacy: object) -> TrainConfig:
    size = 64 if privacy.get("clipping") == "adaptive" else 4
    settings = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0, "insecure_min_survivors": 3}
    tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": size}, "privacy": settings | privacy}
    return parse_config(tree | ({"phases": list(phases)} if phases else {}), "test")


STATISTICS = config("units", "speech", "faces", simulated_cohort=1000, simulated_population=10_000)


class Run:
    """A run's folder with four clients of one value each, all in this process."""

    def __init__(
        self, folder: Path, settings: TrainConfig, cohort: list[str] | None = None, phase: PhaseName = "faces"
    ) -> None:
        self.folder, self.config, self.cohort = folder, settings, cohort or COHORT
        self.checkpoints = folder / "checkpoints"
        start = Checkpoint(0, np.zeros(DIMENSION, np.float32), {}, phase=phase)
        save_checkpoint(self.checkpoints, start, config_fingerprint(settings))
        self.keys = {name: SigningKey.generate() for name in self.cohort}
        server = SigningKey.kept_in(RunFolder(folder).server_key)
        self.roster = Roster({name: key.public for name, key in self.keys.items()}, server.public)
        extend_roster(RunFolder(folder).roster, server.public, self.roster.clients)
        self.name = RosterFile(RunFolder(folder).roster).read()[1]

    def server(self) -> ParameterServer:
        return ParameterServer(str(self.folder), self.config, rate=0.5)

    def round(
        self, boundary: Callable[[str], None] = lambda _: None, server: ParameterServer | None = None
    ) -> ParameterServer:
        """One whole round from whatever is on disk; `boundary` is told where it is."""
        server = server or self.server()
        number = server.round() + 1
        plan = open_plan(server.begin(number, self.cohort, bytes(32)), self.roster, self.name)
        boundary("begun")
        limits, codec = limits_of(self.config.privacy), make_codec(self.config, DIMENSION)
        clients = {name: SecureClient(name, self.keys[name], self.roster, plan, limits) for name in self.cohort}
        frames = dict.fromkeys(self.cohort, b"")
        for stage in STAGES:
            answers = []
            for name, frame in frames.items():
                update = np.full(DIMENSION, 0.1, np.float32)
                vector = codec.encode(update, 1.0, plan.clip_norm, len(plan.cohort), system_rng())
                more = {"advertise": (), "mask": (frame, vector)}.get(stage, (frame,))
                answers.append(getattr(clients[name], stage)(*more))
            boundary(f"before {stage}")
            collected = server.collect(stage, answers)
            assert collected.aborted is None
            frames = collected.frames
            boundary(f"after {stage}")
        server.finish(number)
        boundary("finished")
        return server


def charged(run: Run) -> list[tuple[int, tuple[str, ...]]]:
    """The rounds that are paid for on disk, and whom each is charged to."""
    found = Ledger(RunFolder(run.folder).ledger).charges
    assert len({charge.exchange for charge in found}) == len(found)
    return [(charge.round, charge.clients) for charge in found]


def killed_at(run: Run, where: str, install: Callable[[], None] = lambda: None) -> None:
    """Runs a round in a child process that kills itself with SIGKILL at that boundary."""

    def boundary(name: str) -> None:
        if name == where:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            install()
            run.round(boundary)
        finally:
            os._exit(1)  # it should have been killed: pytest must not go on in two processes
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "the child was to be killed"


BOUNDARIES = ["begun", *(f"{when} {stage}" for stage in STAGES for when in ("before", "after")), "finished"]


@pytest.mark.parametrize("where", BOUNDARIES)
def test_a_round_killed_at_any_boundary_is_charged_once_if_its_inputs_arrived(tmp_path: Path, where: str) -> None:
    run = Run(tmp_path, config())
    killed_at(run, where)
    arrived = BOUNDARIES.index(where) >= BOUNDARIES.index("after mask")
    assert len(charged(run)) == (1 if arrived else 0)
    applied = where == "finished"
    assert run.server().round() == (1 if applied else 0)
    run.round()
    assert len(charged(run)) == (2 if arrived else 1)
    assert charged(run)[-1][0] == (2 if applied else 1)


@pytest.mark.parametrize("after", [False, True], ids=["before it is on disk", "when it is on disk"])
def test_a_server_killed_while_it_writes_a_charge(tmp_path: Path, after: bool) -> None:
    """Dying before the file is in its place, nothing had been opened; dying after, the charge is there."""
    run = Run(tmp_path, config())
    replace = os.replace

    def dying(source: str, target: str) -> None:
        if after or Path(target).name != "ledger.json":
            replace(source, target)
        if Path(target).name == "ledger.json":
            os.kill(os.getpid(), signal.SIGKILL)

    killed_at(run, "never", lambda: setattr(os, "replace", dying))
    assert len(charged(run)) == (1 if after else 0)
    run.round()
    assert len(charged(run)) == (2 if after else 1)


def test_the_round_that_would_overspend_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    probe = Run(tmp_path / "probe", config())
    probe.round()
    probe.round()
    budget = Ledger(RunFolder(probe.folder).ledger).spent(1e-5).release
    run = Run(tmp_path / "run", config(epsilon=budget))
    run.round()
    server = run.round()
    before, ledger = server.shared().tobytes(), (run.checkpoints / "ledger.json").read_bytes()
    with pytest.raises(BudgetSpent, match=r"round 3 would bring epsilon to .*the model after round 2 is the last one"):
        server.begin(3, COHORT, bytes(32))
    with pytest.raises(BudgetSpent, match="round 3 would bring epsilon to"):
        server.skip(3)
    assert server.round() == 2
    assert server.shared().tobytes() == before and (run.checkpoints / "ledger.json").read_bytes() == ledger


@pytest.mark.parametrize("mechanism", ["skellam", "gaussian"])
def test_a_round_for_which_too_few_came_is_charged(tmp_path: Path, mechanism: str) -> None:
    """S8: told three times it is charged once, and the next exchange has a number of its own."""
    run = Run(tmp_path, config(mechanism=mechanism))
    run.round()
    server = run.server()
    for _ in range(2):
        figures = server.skip(2)
    assert figures["aborted"] == "too few" and figures["survivors"] == 0
    assert run.server().skip(2)["epsilon"] == figures["epsilon"]
    assert charged(run) == [(1, tuple(COHORT)), (2, ())]
    noise = Ledger(RunFolder(run.folder).ledger).charges[0].noise
    assert figures["epsilon"] == pytest.approx(epsilon([Rounds(noise, 0.5, 2)], 1e-5), rel=1e-6)
    run.round()
    assert [number for number, _ in charged(run)] == [1, 2, 3]


@pytest.mark.parametrize("given_up", [False, True])
def test_a_round_of_statistics_that_ends_the_run_is_charged_first(tmp_path: Path, given_up: bool) -> None:
    run = Run(tmp_path, STATISTICS, phase="units")
    server = run.server()
    with pytest.raises(RunError, match="no other round can stand in for it"):
        if given_up:
            server.begin(1, run.cohort, bytes(32))
            server.finish(1, server.collect("advertise", []).aborted)
        else:
            server.skip(1)
    assert charged(run) == [(1, ())]


def test_a_round_that_ends_the_run_is_charged_unless_it_was_gone_through(tmp_path: Path) -> None:
    """Whatever ends the run comes after it, also where the server came back in between."""
    for mechanism in ("skellam", "gaussian"):
        run = Run(tmp_path / mechanism, config(mechanism=mechanism))
        server = run.round()
        for each in (server, run.server()):
            each.give_up(1, COHORT[:3])
        assert len(charged(run)) == 1
        server.give_up(2, COHORT[:3])
        assert charged(run)[1][0] == 2, "of which no masked input had arrived"


@pytest.mark.parametrize("harm", ["deleted", "older", "emptied"])
@pytest.mark.parametrize("mechanism", ["skellam", "gaussian"])
def test_a_ledger_that_was_lost_or_put_back_is_refused(tmp_path: Path, harm: str, mechanism: str) -> None:
    run = Run(tmp_path, config(mechanism=mechanism))
    ledger = RunFolder(run.folder).ledger
    run.round()
    older = ledger.read_bytes()
    run.round()
    if harm == "deleted":
        ledger.unlink()
    else:
        ledger.write_bytes(older if harm == "older" else b"[]")
    there = 1 if harm == "older" else 0
    with pytest.raises(RunError, match=rf"ledger .*ledger.json has {there} charges, and the run had made 2; .*put the"):
        run.server()


@pytest.mark.parametrize("aggregation", ["with noise", "without"])
@pytest.mark.parametrize("lost", [["exchange.json"], ["exchange.json", "ledger.json"], ["roster.jsonl"]])
def test_what_the_server_lost_is_named_before_a_round_is(tmp_path: Path, lost: list[str], aggregation: str) -> None:
    run = Run(tmp_path, config() if aggregation == "with noise" else config(mechanism="none", noise_multiplier=None))
    run.round()
    number = RunFolder(run.folder).exchange_number
    whole = number.read_bytes()
    number.write_text('{"exchange": Infinity}')
    with pytest.raises(RunError, match=r"exchange.json is damaged"):
        run.server()
    number.write_bytes(whole)
    for path in [path for path in tmp_path.rglob("*") if path.name in lost]:
        path.unlink()
    with pytest.raises(RunError, match=rf"{lost[0]} is gone.*put it back"):
        run.server()


def test_views_count_what_each_observer_may_combine(tmp_path: Path) -> None:
    """b took part twice, a and c once: the server's view composes b's two rounds, unamplified."""
    noise = Noise("gaussian", 2.0)
    ledger = Ledger(tmp_path / "ledger.json")
    for exchange, clients in enumerate([("a", "b"), ("b", "c")], 1):
        for _ in range(2):  # charged again it changes nothing
            ledger.charge(Charge(exchange, exchange, noise, 0.1, clients))
    assert Ledger(tmp_path / "ledger.json").charges == ledger.charges
    spent = ledger.spent(1e-5)
    assert spent.server == pytest.approx(get_epsilon_gaussian(2.0 / np.sqrt(2), 1e-5), abs=0.02)
    assert 0 < spent.release < 0.7 * spent.server
    assert (spent.rounds, spent.participations) == (2, 2)
    assert spent.release_bound >= spent.release and spent.server_bound >= spent.server


@pytest.mark.parametrize("text", ["[{", "[{}]", '{"a": 1}', "[3]"])
def test_a_damaged_ledger_stops_everything(tmp_path: Path, text: str) -> None:
    (tmp_path / "ledger.json").write_text(text)
    with pytest.raises(RunError, match="is damaged"):
        Ledger(tmp_path / "ledger.json")


def test_the_clip_norm_follows_the_cohort_and_outlives_a_restart(tmp_path: Path) -> None:
    """64 clients, all below C = 1: the quantile is near 1, so the next C is near exp(-0.2 * 0.5) = 0.905."""
    cohort = [f"c{place:02d}" for place in range(64)]
    run = Run(tmp_path, config(clipping="adaptive"), cohort)
    first = run.round()

    def planned(server: ParameterServer) -> float:
        return open_plan(server.begin(2, cohort, bytes(32)), run.roster, run.name).clip_norm

    assert planned(first) == pytest.approx(0.905, abs=0.055) and planned(first) != 1.0
    assert planned(run.server()) == planned(first)


def test_of_rounds_of_several_phases_the_client_of_the_largest_epsilon_counts(tmp_path: Path) -> None:
    """Coarse steps cost what their multiplier does not tell: a's two rounds more than b's one, of less noise."""
    coarse, fine = Noise("skellam", 1.5, 2.0, 10_000), Noise("skellam", 1.0)
    one, two = (epsilon([Rounds(noise, 1.0, count)], 1e-5) for noise, count in ((fine, 1), (coarse, 2)))
    assert two > one + 0.4 and 2 / coarse.multiplier**2 < 1 / fine.multiplier**2
    ledger = Ledger(tmp_path / "ledger.json")
    for exchange, (noise, clients) in enumerate([(coarse, ("a",)), (coarse, ("a", "c")), (fine, ("b",))], 1):
        ledger.charge(Charge(exchange, exchange, noise, 0.5, clients))
    assert ledger.spent(1e-5).server == pytest.approx(two)
