"""Every draw of a round's cohort that came to something is charged once, however often the server dies and is asked
again; a round whose cohort is drawn anew costs anew."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedtalk_ray import rounds
from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import RunError, UserError
from fedtalk_ray.federation.failure_policy import FailurePolicy, QuorumLost
from fedtalk_ray.privacy.accounting import Noise
from fedtalk_ray.privacy.ledger import Charge, Ledger
from fedtalk_ray.rounds import Federation
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from tests.slow.federation.test_ledger_survives import COHORT, DIMENSION, Run, config

FEW = ["a", "b"]


class Driver:
    """A run's main loop without slots. Its server dies before each call and after it, and is called again."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self._patch = run, monkeypatch
        monkeypatch.setattr(rounds, "ask", self._ask)
        monkeypatch.setattr(Federation, "_enrol", lambda *_: None)

    def _ask(self, _: object, method: str, *arguments: object) -> Any:
        with contextlib.suppress(UserError):
            getattr(self.run.server(), method)(*arguments)
        return getattr(self.run.server(), method)(*arguments)

    def draws(self, cohort: list[str], quorum_lost: bool = False) -> None:
        """One draw of the next round, of which nothing comes."""

        def one_round(*_: object, **__: object) -> None:
            if self.run.config.aggregation == "secure":
                self.run.server().begin(1, cohort, bytes(32))
            raise QuorumLost("too few answered")

        self._patch.setattr(rounds, f"{self.run.config.aggregation}_round", one_round)
        server: Any = SimpleNamespace(shared=SimpleNamespace(remote=lambda: "shared"))
        pool: Any = SimpleNamespace(policy=FailurePolicy(self.run.config.failures))
        federation = Federation(self.run.config, pool, server)
        number = self.run.server().round() + 1
        if quorum_lost:
            with pytest.raises(QuorumLost):
                federation.run_round(number, cohort)
        else:
            federation.run_round(number, cohort)

    @property
    def charges(self) -> list[tuple[int, tuple[str, ...]]]:
        found = Ledger(RunFolder(self.run.folder).ledger).charges
        assert len({charge.exchange for charge in found}) == len(found)
        return [(charge.round, charge.clients) for charge in found]


def central(**privacy: object) -> TrainConfig:
    return config(mechanism="gaussian", **privacy).model_copy(update={"aggregation": "plain"})


def test_a_round_that_lost_its_quorum_and_is_skipped_when_it_is_drawn_anew_costs_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(Run(tmp_path, config()), monkeypatch)
    driver.draws(COHORT, quorum_lost=True)
    assert driver.charges == [(1, ())]
    driver.draws(FEW)
    assert driver.charges == [(1, ()), (1, ())]
    driver.draws(FEW)
    assert driver.charges == [(1, ()), (1, ()), (2, ())]


def test_every_draw_that_lost_its_quorum_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(Run(tmp_path, config()), monkeypatch)
    for drawn in (COHORT[:3], COHORT, COHORT):
        driver.draws(drawn, quorum_lost=True)
    assert driver.charges == [(1, ())] * 3


def test_every_draw_that_lost_its_quorum_costs_where_the_server_adds_the_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coins may fall alike twice."""
    driver = Driver(Run(tmp_path, central()), monkeypatch)
    for drawn in (["a", "b"], ["a", "b"], ["b", "c"]):
        driver.draws(drawn, quorum_lost=True)
    assert driver.charges == [(1, ("a", "b")), (1, ("a", "b")), (1, ("b", "c"))]


def test_every_draw_of_a_round_of_statistics_that_is_skipped_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be gone through without its clients, so the run ends and the round is drawn anew."""
    tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": 4}, "phases": ["units", "speech", "faces"]}
    privacy = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0, "insecure_min_survivors": 3}
    privacy |= {"simulated_cohort": 1000, "simulated_population": 10_000}
    settings = parse_config(tree | {"privacy": privacy}, "test")
    driver = Driver(Run(tmp_path, settings), monkeypatch)
    start = Checkpoint(0, np.zeros(DIMENSION, np.float32), {}, phase="units")
    save_checkpoint(driver.run.checkpoints, start, config_fingerprint(settings))
    for _ in range(3):
        with pytest.raises(RunError, match="no other round can stand in for it"):
            driver.draws(FEW)
    assert driver.charges == [(1, ())] * 3


def test_a_draw_whose_masked_inputs_are_paid_for_is_given_up_for_nothing_more(tmp_path: Path) -> None:
    """The server knows the exchange, or died and knows nothing but its ledger."""
    run = Run(tmp_path, config())
    server = run.server()
    server.note_draw()

    class Failed(Exception):
        pass

    def boundary(name: str) -> None:
        if name == "after mask":
            raise Failed

    run.server = lambda: server  # type: ignore[method-assign]
    with pytest.raises(Failed):
        run.round(boundary)
    again = Run.server(run)
    for each in (server, again):
        each.give_up(1, COHORT)
    again.finish(1, "too few")
    assert [charge.clients for charge in Ledger(RunFolder(run.folder).ledger).charges] == [tuple(COHORT)]


def test_of_one_draw_others_who_answer_after_a_kill_pay_too(tmp_path: Path) -> None:
    """Between charge and checkpoint: the sums are made anew, of the same clients, of some of them, or of others."""
    run = Run(tmp_path, central())
    for cohort in (["a", "b"], ["a", "b"], ["b"], ["b", "c"]):
        aggregator = run.server()._aggregator
        assert aggregator is not None
        aggregator.charge_plain(1, cohort)
    assert [charge.clients for charge in Ledger(RunFolder(run.folder).ledger).charges] == [("a", "b"), ("b", "c")]


def test_a_new_draw_that_the_budget_has_no_room_for_is_not_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Run(tmp_path / "probe", config())
    Ledger(RunFolder(probe.folder).ledger).charge(Charge(1, 1, Noise("skellam", 1.0, 2.0**18, 6), 0.5, ()))
    budget = Ledger(RunFolder(probe.folder).ledger).spent(1e-5).release
    driver = Driver(Run(tmp_path / "run", config(epsilon=1.01 * budget)), monkeypatch)
    driver.draws(COHORT, quorum_lost=True)
    with pytest.raises(UserError, match="round 1 would bring epsilon to"):
        driver.draws(FEW)
    assert driver.charges == [(1, ())]
