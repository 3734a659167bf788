"""The ledger against kill -9: whatever dies when, no charge is lost and none is made twice."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.roster import RosterFile, extend_roster
from fedtalk_ray.federation.secure_aggregator import (
    BudgetSpent,
    limits_of,
    make_codec,
)
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.privacy.accounting import Noise, Rounds, epsilon
from fedtalk_ray.privacy.keys import Roster, SigningKey
from fedtalk_ray.privacy.ledger import Charge, Ledger
from fedtalk_ray.privacy.noise import system_rng
from fedtalk_ray.privacy.protocol import STAGES
from fedtalk_ray.privacy.publication import told
from fedtalk_ray.privacy.secure_client import SecureClient, open_plan
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig

COHORT = ["a", "b", "c", "d"]
DIMENSION = 5
SIMULATED = {"simulated_cohort": 200, "simulated_population": 20_000}


def config(**privacy: object) -> TrainConfig:
    size = 64 if privacy.get("clipping") == "adaptive" else 4
    settings = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0, "insecure_min_survivors": 3}
    tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": size}, "privacy": settings | privacy}
    return parse_config(tree, "test")


class Run:
    """A run's folder with four clients of one value each, all in this process."""

    def __init__(self, folder: Path, settings: TrainConfig, cohort: list[str] | None = None) -> None:
        self.folder, self.config, self.cohort = folder, settings, cohort or COHORT
        self.checkpoints = folder / "checkpoints"
        save_checkpoint(
            self.checkpoints, Checkpoint(0, np.zeros(DIMENSION, np.float32), {}), config_fingerprint(settings)
        )
        self.keys = {name: SigningKey.generate() for name in self.cohort}
        server = SigningKey.kept_in(RunFolder(folder).server_key)
        self.roster = Roster({name: key.public for name, key in self.keys.items()}, server.public)
        extend_roster(RunFolder(folder).roster, server.public, self.roster.clients)
        self.name = RosterFile(RunFolder(folder).roster).read()[1]

    def server(self) -> ParameterServer:
        return ParameterServer(str(self.folder), self.config, rate=0.5)

    def round(self, boundary: Callable[[str], None] = lambda _: None) -> ParameterServer:
        """One whole round from whatever is on disk; `boundary` is told where it is."""
        server = self.server()
        number = server.round() + 1
        plan = open_plan(server.begin(number, self.cohort, bytes(32)), self.roster, self.name)
        boundary("begun")
        limits, codec = limits_of(self.config.privacy), make_codec(self.config, DIMENSION)
        clients = {name: SecureClient(name, self.keys[name], self.roster, plan, limits) for name in self.cohort}
        frames = dict.fromkeys(self.cohort, b"")
        for stage in STAGES:
            answers = []
            for name, frame in frames.items():
                if stage == "advertise":
                    answers.append(clients[name].advertise())
                elif stage == "mask":
                    update = np.full(DIMENSION, 0.1, np.float32)
                    vector = codec.encode(update, 1.0, plan.clip_norm, len(plan.cohort), system_rng())
                    answers.append(clients[name].mask(frame, vector))
                else:
                    answers.append(getattr(clients[name], stage)(frame))
            boundary(f"before {stage}")
            collected = server.collect(stage, answers)
            assert collected.aborted is None
            frames = collected.frames
            boundary(f"after {stage}")
        server.finish(number)
        boundary("finished")
        return server


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
    assert len(Ledger(RunFolder(run.folder).ledger).charges) == (1 if arrived else 0)
    applied = where == "finished"
    assert run.server().round() == (1 if applied else 0)
    run.round()
    charges = Ledger(RunFolder(run.folder).ledger).charges
    assert len(charges) == (2 if arrived else 1)
    assert len({charge.exchange for charge in charges}) == len(charges)
    assert charges[-1].round == (2 if applied else 1)


@pytest.mark.parametrize("after", [False, True], ids=["before it is on disk", "when it is on disk"])
def test_a_server_killed_while_it_writes_a_charge(tmp_path: Path, after: bool) -> None:
    """Dying before the file is in its place, nothing had been opened; dying after, the charge is there."""
    run = Run(tmp_path, config())
    replace = os.replace

    def install() -> None:
        def dying(source: str, target: str) -> None:
            if Path(target).name == "ledger.json" and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            if Path(target).name == "ledger.json":
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = dying  # type: ignore[assignment]

    killed_at(run, "never", install)
    assert len(Ledger(RunFolder(run.folder).ledger).charges) == (1 if after else 0)
    run.round()
    assert len(Ledger(RunFolder(run.folder).ledger).charges) == (2 if after else 1)


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
    assert server.shared().tobytes() == before and (run.checkpoints / "ledger.json").read_bytes() == ledger


@pytest.mark.parametrize(("more", "says"), [({}, False), (SIMULATED, True)])
def test_whatever_is_told_of_a_simulated_cohorts_epsilon_says_so(
    tmp_path: Path, more: dict[str, int], says: bool
) -> None:
    """A round that was summed, one that was skipped, what stands beside an evaluation, and the round that is refused.
    The history, TensorBoard and Prometheus are told these records."""
    server = Run(tmp_path / "run", config(**more)).round()
    for figures in (server.finish(1), server.skip(2), server.spent()):
        assert figures["epsilon"] > 0 and figures.get("simulation", False) == says
        assert ("simulation" in told(figures)) == says
    poor = Run(tmp_path / "poor", config(epsilon=0.1, **more)).server()
    with pytest.raises(BudgetSpent, match="would bring epsilon to") as refused:
        poor.begin(1, COHORT, bytes(32))
    assert ("SIMULATION: the noise is that of a cohort of 200 out of 20000" in str(refused.value)) == says


@pytest.mark.parametrize("mechanism", ["skellam", "gaussian"])
def test_a_round_for_which_too_few_came_is_charged(tmp_path: Path, mechanism: str) -> None:
    """S8: the account by sampling counts rounds, and that one was skipped tells something of who came. Told three times
    it is charged once, and the next exchange has a number of its own."""
    run = Run(tmp_path, config(mechanism=mechanism))
    run.round()
    server = run.server()
    for _ in range(2):
        figures = server.skip(2)
    assert figures["aborted"] == "too few" and figures["survivors"] == 0
    assert run.server().skip(2)["epsilon"] == figures["epsilon"]
    charges = Ledger(RunFolder(run.folder).ledger).charges
    assert [(charge.round, charge.clients) for charge in charges] == [(1, tuple(COHORT)), (2, ())]
    noise = charges[0].noise
    assert figures["epsilon"] == pytest.approx(epsilon([Rounds(noise, 0.5, 2)], 1e-5), rel=1e-6)
    run.round()
    assert [charge.round for charge in Ledger(RunFolder(run.folder).ledger).charges] == [1, 2, 3]


@pytest.mark.parametrize("given_up", [False, True])
def test_a_round_of_statistics_that_ends_the_run_is_charged_first(tmp_path: Path, given_up: bool) -> None:
    """The run can be resumed and draws another cohort then; each draw that was too few has told something."""
    tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": 4}, "phases": ["units", "speech", "faces"]}
    privacy = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0, "insecure_min_survivors": 3}
    settings = parse_config(
        tree | {"privacy": privacy | {"simulated_cohort": 1000, "simulated_population": 10_000}}, "test"
    )
    run = Run(tmp_path, settings)
    start = Checkpoint(0, np.zeros(DIMENSION, np.float32), {}, phase="units")
    save_checkpoint(run.checkpoints, start, config_fingerprint(settings))
    server = run.server()
    with pytest.raises(RunError, match="no other round can stand in for it"):
        if given_up:
            server.begin(1, run.cohort, bytes(32))
            server.finish(1, server.collect("advertise", []).aborted)
        else:
            server.skip(1)
    assert [charge.round for charge in Ledger(RunFolder(run.folder).ledger).charges] == [1]


def test_a_round_that_ends_the_run_before_its_exchange_is_charged(tmp_path: Path) -> None:
    """That the last round's masked inputs had arrived says nothing of this one."""
    run = Run(tmp_path, config())
    server = run.round()
    server.give_up(2, COHORT)
    charges = Ledger(RunFolder(run.folder).ledger).charges
    assert [(charge.round, charge.clients) for charge in charges] == [(1, tuple(COHORT)), (2, ())]


def test_a_round_that_was_gone_through_is_not_charged_again(tmp_path: Path) -> None:
    """Whatever ends the run comes after it, also where the server came back in between."""
    for mechanism in ("skellam", "gaussian"):
        run = Run(tmp_path / mechanism, config(mechanism=mechanism))
        server = run.round()
        for each in (server, run.server()):
            each.give_up(1, COHORT[:3])
        assert len(Ledger(RunFolder(run.folder).ledger).charges) == 1


def test_a_lost_quorum_without_noise_costs_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, config(mechanism="none", noise_multiplier=None))
    server = run.server()
    server.begin(1, COHORT, bytes(32))
    server.give_up(1, COHORT)
    assert not RunFolder(run.folder).ledger.exists()


def test_a_skipped_round_that_would_overspend_is_not_gone_through(tmp_path: Path) -> None:
    probe = Run(tmp_path / "probe", config())
    probe.round()
    budget = Ledger(RunFolder(probe.folder).ledger).spent(1e-5).release
    run = Run(tmp_path / "run", config(epsilon=budget))
    server = run.round()
    with pytest.raises(BudgetSpent, match="round 2 would bring epsilon to"):
        server.skip(2)
    assert server.round() == 1


@pytest.mark.parametrize("harm", ["deleted", "older", "emptied"])
@pytest.mark.parametrize("mechanism", ["skellam", "gaussian"])
def test_a_ledger_that_was_lost_or_put_back_is_refused(tmp_path: Path, harm: str, mechanism: str) -> None:
    """S11: a missing file meant that nothing was spent, and epsilon fell from 9.09 to 0."""
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


def test_a_round_of_statistics_that_failed_after_its_masked_inputs_is_no_matter_for_resume(tmp_path: Path) -> None:
    """Who sent a masked update takes no part in another exchange of the round, so --resume failed for ever."""
    tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": 4}}
    settings = parse_config(tree | {"privacy": {"insecure_min_survivors": 3}}, "test")
    run = Run(tmp_path, settings)
    begun = Checkpoint(0, np.zeros(DIMENSION, np.float32), {}, phase="units")
    save_checkpoint(run.checkpoints, begun, config_fingerprint(settings))

    class Failed(Exception):
        pass

    server: list[ParameterServer] = []
    whole = run.server
    run.server = lambda: server[0]  # type: ignore[method-assign]
    for where, mend in (("before mask", "go on with --resume"), ("after mask", "begin another run")):
        server[:] = [whole()]

        def boundary(name: str, where: str = where) -> None:
            if name == where:
                raise Failed

        with pytest.raises(Failed):
            run.round(boundary)
        with pytest.raises(RunError, match=rf"of the phase units, was given up \(too few\).*{mend}"):
            server[0].finish(1, "too few")
    with pytest.raises(RunError, match="begin another run"):
        whole().skip(1)


@pytest.mark.parametrize("aggregation", ["with noise", "without"])
@pytest.mark.parametrize("lost", [["exchange.json"], ["exchange.json", "ledger.json"], ["roster.jsonl"]])
def test_what_the_server_lost_is_named_before_a_round_is(tmp_path: Path, lost: list[str], aggregation: str) -> None:
    """Exchanges began at 1 again, or the run had another name: every client refused every round to the last, and no
    line said why. Without both books epsilon began at nothing."""
    run = Run(tmp_path, config() if aggregation == "with noise" else config(mechanism="none", noise_multiplier=None))
    run.round()
    for path in [path for path in tmp_path.rglob("*") if path.name in lost]:
        path.unlink()
    with pytest.raises(RunError, match=rf"{lost[0]} is gone.*put it back"):
        run.server()


@pytest.mark.parametrize("content", ["", "[]", '{"exchange": "x"}', '{"exchange": Infinity}'])
def test_a_damaged_number_of_exchanges_is_refused(tmp_path: Path, content: str) -> None:
    run = Run(tmp_path, config())
    run.round()
    RunFolder(run.folder).exchange_number.write_text(content)
    with pytest.raises(RunError, match=r"exchange.json is damaged"):
        run.server()


def test_charging_an_exchange_again_changes_nothing(tmp_path: Path) -> None:
    charge = Charge(7, 1, Noise("gaussian", 1.0), 0.1, ("a", "b"))
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.charge(charge)
    ledger.charge(charge)
    assert Ledger(tmp_path / "ledger.json").charges == [charge]


def test_views_count_what_each_observer_may_combine(tmp_path: Path) -> None:
    """b took part twice, a and c once: the server's view composes b's two rounds, unamplified."""
    noise = Noise("gaussian", 2.0)
    ledger = Ledger(tmp_path / "ledger.json")
    for exchange, clients in enumerate([("a", "b"), ("b", "c")], 1):
        ledger.charge(Charge(exchange, exchange, noise, 0.1, clients))
    spent = ledger.spent(1e-5)
    # Two Gaussian rounds at z = 2 are one at z = sqrt 2: epsilon 3.24 at delta 1e-5 by the analytic formula.
    assert spent.server == pytest.approx(analytic_epsilon(2.0 / np.sqrt(2), 1e-5), abs=0.02)
    assert 0 < spent.release < 0.7 * spent.server
    assert (spent.rounds, spent.participations) == (2, 2)
    assert spent.release_bound >= spent.release and spent.server_bound >= spent.server


def test_where_the_noise_has_changed_the_costliest_client_counts(tmp_path: Path) -> None:
    """One round at z = 1 costs more than two at z = 2."""
    ledger = Ledger(tmp_path / "ledger.json")
    for exchange, (multiplier, clients) in enumerate([(2.0, ("a", "b")), (2.0, ("b",)), (1.0, ("c",))], 1):
        ledger.charge(Charge(exchange, exchange, Noise("gaussian", multiplier), 0.1, clients))
    assert ledger.spent(1e-5).server == pytest.approx(analytic_epsilon(1.0, 1e-5), abs=0.02)


def test_of_rounds_of_several_phases_the_client_of_the_largest_epsilon_counts(tmp_path: Path) -> None:
    """Coarse steps cost what their multiplier does not tell: a's two rounds more than b's one, of less noise."""
    coarse, fine = Noise("skellam", 1.5, 2.0, 10_000), Noise("skellam", 1.0)
    one, two = (epsilon([Rounds(noise, 1.0, count)], 1e-5) for noise, count in ((fine, 1), (coarse, 2)))
    assert two > one + 0.4 and 2 / coarse.multiplier**2 < 1 / fine.multiplier**2
    ledger = Ledger(tmp_path / "ledger.json")
    for exchange, (noise, clients) in enumerate([(coarse, ("a",)), (coarse, ("a", "c")), (fine, ("b",))], 1):
        ledger.charge(Charge(exchange, exchange, noise, 0.5, clients))
    assert ledger.spent(1e-5).server == pytest.approx(two)


def test_a_ledger_of_five_phases_is_told_in_no_time(tmp_path: Path) -> None:
    """4,000 clients, nearly each with a history of its own."""
    noises = [Noise("skellam", 2.0, 2.0**18, 10**phase) for phase in range(2, 7)]
    draw = np.random.default_rng(0)
    ledger = Ledger(tmp_path / "ledger.json")
    ledger._charges = {
        k: Charge(k, k, noises[k % 5], 0.05, tuple(f"{c:04d}" for c in draw.choice(4000, 200, replace=False)))
        for k in range(1, 501)
    }
    epsilon([Rounds(noises[0], 0.05, 1)], 1e-5)  # imports the accountant, which takes seconds itself
    started = time.process_time()
    spent = ledger.spent(1e-5)
    assert time.process_time() - started < 5
    # Steps are fine, so that it hardly matters in which phase a round was.
    most = epsilon([Rounds(noises[0], 1.0, spent.participations)], 1e-5)
    assert most <= spent.server < most + 0.01


def test_a_long_ledger_is_told_and_written_on_in_no_time(tmp_path: Path) -> None:
    """1,500 rounds of 200 out of 4,000 clients; looking every client up in every round would take a minute."""
    names = [f"client-{number:05d}" for number in range(4000)]
    charges = [
        {"exchange": k, "round": k, "noise": {"kind": "skellam", "multiplier": 2.0}, "rate": 0.05}
        | {"clients": names[k % 20 :: 20]}
        for k in range(1, 1501)
    ]
    (tmp_path / "ledger.json").write_text(json.dumps(charges))
    ledger = Ledger(tmp_path / "ledger.json")
    epsilon([Rounds(Noise("skellam", 2.0), 0.05, 1)], 1e-5)  # imports the accountant, which takes seconds itself
    started = time.process_time()
    ledger.charge(Charge(1501, 1501, Noise("skellam", 2.0), 0.05, tuple(names[:200])))
    spent = ledger.spent(1e-5)
    assert time.process_time() - started < 5
    assert (spent.rounds, spent.participations) == (1501, 76)
    assert Ledger(tmp_path / "ledger.json").charges == ledger.charges


def analytic_epsilon(multiplier: float, delta: float) -> float:
    """Balle and Wang 2018: delta(eps) of one Gaussian mechanism, solved for eps by bisection."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    def excess(epsilon: float) -> float:
        half = 1 / (2 * multiplier)
        shift = epsilon * multiplier
        return float(norm.cdf(half - shift) - np.exp(epsilon) * norm.cdf(-half - shift) - delta)

    return float(brentq(excess, 1e-3, 50))


@pytest.mark.parametrize("text", ["[{", "[{}]", '{"a": 1}', "[3]"])
def test_a_damaged_ledger_stops_everything(tmp_path: Path, text: str) -> None:
    (tmp_path / "ledger.json").write_text(text)
    with pytest.raises(RunError, match="is damaged"):
        Ledger(tmp_path / "ledger.json")


def test_the_clip_norm_follows_the_cohort_and_outlives_a_restart(tmp_path: Path) -> None:
    """64 clients, all below C = 1: the quantile is near 1, so the next C is near exp(-0.2 * 0.5) = 0.905.

    The count's noise is n / 20 = 3.2, a share of 0.05: C lies within 0.905 +- 6 * 0.2 * 0.05 * 0.905.
    """
    cohort = [f"c{place:02d}" for place in range(64)]
    run = Run(tmp_path, config(clipping="adaptive"), cohort)
    first = run.round()

    def planned(server: ParameterServer) -> float:
        return open_plan(server.begin(2, cohort, bytes(32)), run.roster, run.name).clip_norm

    assert planned(first) == pytest.approx(0.905, abs=0.055) and planned(first) != 1.0
    assert planned(run.server()) == planned(first)
