"""Every draw of a round's cohort that came to something is charged once, however often the server dies."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedtalk_ray import rounds
from fedtalk_ray.errors import UserError
from fedtalk_ray.federation.failure_policy import FailurePolicy, QuorumLost
from fedtalk_ray.rounds import Federation
from fedtalk_ray.settings import TrainConfig
from tests.slow.federation.test_ledger_survives import COHORT, Run, charged, config

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
        return charged(self.run)


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
    """Whoever adds the noise. Coins may fall alike twice."""
    draws = (COHORT[:3], COHORT[:3], COHORT)
    for settings in (config(), central()):
        driver = Driver(Run(tmp_path / settings.aggregation, settings), monkeypatch)
        for drawn in draws:
            driver.draws(drawn, quorum_lost=True)
        assert driver.charges == [(1, tuple(drawn) if settings.aggregation == "plain" else ()) for drawn in draws]


def test_of_one_draw_others_who_answer_after_a_kill_pay_too(tmp_path: Path) -> None:
    """Between charge and checkpoint: the sums are made anew, of the same clients, of some of them, or of others."""
    run = Run(tmp_path, central())
    for cohort in (["a", "b"], ["a", "b"], ["b"], ["b", "c"]):
        aggregator = run.server()._aggregator
        assert aggregator is not None
        aggregator.charge_plain(1, cohort)
    assert charged(run) == [(1, ("a", "b")), (1, ("b", "c"))]
