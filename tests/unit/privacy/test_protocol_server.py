"""The protocol behind the parameter server: the model, the budget and the ledger, whatever arrives."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.roster import RosterFile, extend_roster
from fedtalk_ray.federation.secure_aggregator import make_codec
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.ledger import Ledger
from fedtalk_ray.privacy.protocol import STAGES, Aborted, Code
from fedtalk_ray.privacy.secure_client import check_plan, open_plan
from fedtalk_ray.recipe import PhaseName
from fedtalk_ray.runs.checkpoints import Checkpoint, config_digest, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from tests.unit.privacy.conftest import Exchange
from tests.unit.privacy.tampering import CASES, OFFENDER, SKELLAM, Make

DIMENSION = 6


class Door:
    """A parameter server with the methods of a `SecureServer`, so that an `Exchange` can drive it through `collect`."""

    def __init__(self, server: ParameterServer) -> None:
        self.server, self.place = server, 0
        self.waiting: list[Any] = []
        self.refused: dict[str, int] = {}

    @property
    def stage(self) -> str:
        return STAGES[self.place] if self.place < len(STAGES) else "open"

    def receive(self, frame: Any) -> None:
        self.waiting.append(frame)

    def close(self) -> dict[str, bytes]:
        before = hash_of(self.server)
        half = len(self.waiting) // 2
        collected = self.server.collect(self.stage, self.waiting[:half], self.waiting[half:])
        assert hash_of(self.server) == before, "no message may change the model"
        self.refused, self.waiting = collected.rejected, []
        if collected.aborted is not None:
            raise Aborted(Code(collected.aborted))
        self.place += 1
        return collected.frames

    def __getattr__(self, name: str) -> Any:
        return getattr(self.server._aggregator._exchange, name)


def hash_of(server: ParameterServer) -> str:
    return hashlib.sha256(server.shared().tobytes()).hexdigest()


class Run:
    """A run's folder with five clients and a parameter server whose model is 0, 1, 2...

    Client k = 1, 2... has the update (k, ..., k) / 10 and the weight k / 8.
    """

    def __init__(self, folder: Path, make_exchange: Make, phase: PhaseName = "faces", **privacy: Any) -> None:
        tree = {"run": str(folder), "shards": "s", "pretrained": "p", "aggregation": "secure", "cohort": {"size": 5}}
        tree |= {"phases": ["faces"] if phase == "faces" else [phase, "faces"], "rounds": 12}
        privacy = {"insecure_min_survivors": 3, "clip_norm": 30.0} | privacy
        self.config = parse_config(tree | {"privacy": privacy}, "test")
        self.folder, self.make_exchange = RunFolder(folder), make_exchange
        self.people = make_exchange(5).people
        self.people.server = SigningKey.kept_in(self.folder.server_key)
        extend_roster(self.folder.roster, self.people.roster.server, self.people.roster.clients)
        self.name = RosterFile(self.folder.roster).read()[1]
        start = Checkpoint(0, np.arange(DIMENSION, dtype=np.float32), {}, phase=phase)
        save_checkpoint(self.folder.checkpoints, start, config_fingerprint(self.config))
        self.codec = make_codec(self.config, DIMENSION)
        self.share = 1.0
        """What every client's weight is multiplied by."""
        self.restart()
        self.start = hash_of(self.server)

    def restart(self) -> None:
        """A server in the old one's place, with what is on disk."""
        self.server = ParameterServer(str(self.folder.path), self.config)

    def begin(self) -> Exchange:
        """The next round, with clients that have looked at its plan."""
        number = self.server.round() + 1
        frame = self.server.begin(number, list(self.people.names), bytes(32))
        plan = open_plan(frame, self.people.roster, self.name)
        shared, digest_ = bytes.fromhex(hash_of(self.server)), config_digest(self.config)
        vectors, rng = {}, np.random.default_rng(number)
        for place, name in enumerate(plan.cohort, 1):
            last = plan.exchange - 1
            check_plan(plan, name, last_exchange=last, backbone=bytes(32), shared=shared, config=digest_)
            update = np.full(DIMENSION, place / 10, np.float32)
            weight = self.share * plan.weight_scale * place / 8
            vectors[name] = self.codec.encode(update, weight, plan.clip_norm, 5, rng)
        return self.make_exchange(people=self.people, plan=plan, server=Door(self.server), vectors=vectors)

    def check_moved(self, absent: Iterable[str] = ()) -> None:
        """Round 1 took the weighted mean, sum k^2 / (10 sum k) over who is in the sum, and nothing else."""
        places = [place for place, name in enumerate(self.people.names, 1) if name not in set(absent)]
        mean = sum(place**2 for place in places) / (10 * sum(places))
        assert self.server.round() == 1
        assert np.abs(self.server.shared() - np.arange(DIMENSION) - mean).max() < 1e-5

    def check_given_up(self, code: Code) -> None:
        """Round 1 is gone through without a trace in the model, on disk too, and round 2 can follow."""
        figures = self.server.finish(1, str(code))
        assert figures["aborted"] == code and figures["survivors"] == 0 and "update_norm" not in figures
        for _ in range(2):
            assert self.server.round() == 1 and hash_of(self.server) == self.start
            self.restart()
        again = self.server.finish(1)
        assert set(again) <= {"noise_multiplier", "epsilon", "epsilon_server"}, "a round is finished once"

    @property
    def charged(self) -> list[int]:
        """The exchanges in the ledger on disk."""
        return [charge.exchange for charge in Ledger(self.folder.ledger).charges]


@pytest.mark.parametrize("stage", STAGES)
def test_a_bad_message_leaves_the_model_as_it_is(make_exchange: Make, tmp_path: Path, stage: str) -> None:
    """`Door.close` looks at the model's hash after every stage."""
    wanted = Counter(code for _, _, code in CASES[stage])
    run = Run(tmp_path, make_exchange)
    exchange = run.begin().until(stage)
    exchange.give(exchange.ask("c00"))
    good = exchange.ask(OFFENDER)
    for _, tamper, _ in CASES[stage]:
        exchange.give(tamper(exchange, OFFENDER, good))
    exchange.give(good)
    exchange.step()
    assert exchange.server.refused == wanted
    exchange.until("open")
    run.server.finish(1)
    run.check_moved()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("privacy", [{}, SKELLAM], ids=["without noise", "skellam"])
def test_a_round_of_too_few_is_gone_through_and_the_next_one_follows(
    make_exchange: Make, tmp_path: Path, privacy: dict[str, Any], stage: str
) -> None:
    """It is charged once masked inputs have come, or when it is given up: a model that did not move tells something."""
    run = Run(tmp_path, make_exchange, **privacy)
    exchange = run.begin().until(stage)
    with pytest.raises(Aborted) as caught:
        exchange.step(["c00", "c01", "c02"])
    assert run.charged == ([1] if privacy and stage not in ("advertise", "share") else [])
    for late in STAGES:
        assert run.server.collect(late, list(exchange.sent.values())).aborted == Code.LOST
    with pytest.raises(Aborted):
        run.server._aggregator.decoded(1)
    run.check_given_up(caught.value.code)
    assert len(run.charged) == (1 if privacy else 0)
    second = run.begin()
    assert second.plan.round == 2 and second.plan.exchange > max([1, *run.charged])
    second.until("confirm")
    assert len(run.charged) == (2 if privacy else 0), "before anybody is told the survivors"
    second.until("open")
    assert run.server.finish(2)["survivors"] == 5
    assert privacy or np.abs(run.server.shared() - np.arange(DIMENSION) - 55 / 150).max() < 1e-5


def test_weights_that_rounding_swallows_end_the_run_in_its_first_round(make_exchange: Make, tmp_path: Path) -> None:
    """In a later round of the phase the same is borne, as its updates may be nothing."""

    def tiny(run: Run) -> Run:
        exchange, rng = run.begin(), np.random.default_rng(1)
        update = np.full(DIMENSION, 0.1, np.float32)
        exchange.vectors = {name: run.codec.encode(update, 5e-7, 30.0, 5, rng) for name in exchange.plan.cohort}
        exchange.until("open")
        return run

    run = tiny(Run(tmp_path, make_exchange))
    with pytest.raises(RunError, match=r"rounding to integers adds .*; set privacy.weight_reference near"):
        run.server.finish(1)
    assert run.server.round() == 0 and hash_of(run.server) == run.start
    run = Run(tmp_path / "later", make_exchange)
    run.begin().until("open")
    run.server.finish(1)
    assert tiny(run).server.finish(2)["rounding_error"] > 0.25


def test_small_weights_are_written_large_from_the_second_round_on(make_exchange: Make, tmp_path: Path) -> None:
    """The mean client's is a quarter then, after a restart too."""
    run = Run(tmp_path, make_exchange)
    run.share = 2e-5
    errors, scales = [], []
    for _ in range(3):
        exchange = run.begin()
        scales.append(exchange.plan.weight_scale)
        exchange.finish()
        errors.append(run.server.finish(run.server.round() + 1)["rounding_error"])
        run.restart()
    mean = 2e-5 * 3 / 8
    assert scales == [1, pytest.approx(1 / (4 * mean), rel=1e-2), pytest.approx(1 / (4 * mean), rel=1e-4)]
    assert errors[1] < errors[0] / 1000 and errors[1] < 1e-4
    assert np.abs(run.server.shared() - np.arange(DIMENSION) - 3 * 55 / 150).max() < 1e-2


def test_of_statistics_all_clients_count_alike(make_exchange: Make, tmp_path: Path) -> None:
    """The mean of 1 ... 5 tenths is 0.3, whatever weights are claimed."""
    run = Run(tmp_path, make_exchange, phase="units")
    run.share = 2e-3
    exchange = run.begin()
    exchange.finish()
    figures = run.server.finish(1)
    assert np.abs(run.server.shared() - np.arange(DIMENSION) - 0.3).max() < 1e-3
    assert "clip_fraction" not in figures and figures["survivors"] == 5


def test_a_client_that_always_claims_most_has_no_more_than_its_part(make_exchange: Make, tmp_path: Path) -> None:
    """Of five it would be 4/5; with a bound of 2 it is 2/5, although it is itself part of the mean."""
    run = Run(tmp_path, make_exchange, most_weight=2.0)
    moved = []
    for number in range(1, 13):
        exchange, rng = run.begin(), np.random.default_rng(number)
        for name in exchange.plan.cohort:
            weight = 1e9 if name == "c02" else 0.1 * exchange.plan.weight_scale
            direction = np.eye(DIMENSION, dtype=np.float32)[int(name == "c02")]
            update = (1000 if name == "c02" else 1) * direction
            exchange.vectors[name] = run.codec.encode(update, weight, 30.0, 5, rng)
        before = run.server.shared().copy()
        exchange.finish()
        run.server.finish(number)
        moved.append(run.server.shared() - before)
    assert moved[0][1] == pytest.approx(30 / 1.4, rel=0.01)
    shares = [step[1] / 30 for step in moved[1:]]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(2 / 5, rel=0.02)
    assert moved[-1][0] == pytest.approx(3 / 5, rel=0.02)


@pytest.mark.parametrize(("privacy", "charged", "sign"), [({}, [], 1), (SKELLAM, [1], -1)])
def test_a_sum_that_no_honest_clients_make_is_thrown_away(
    make_exchange: Make, tmp_path: Path, privacy: dict[str, Any], charged: list[int], sign: int
) -> None:
    """Of five honest ones no value reaches more than 5 units without noise (of a ring of 8) and 14 with it."""
    run = Run(tmp_path, make_exchange, **privacy)
    exchange = run.begin()
    huge = sign * (100 if privacy else 6) * int(run.codec.scale)
    exchange.vectors["c02"] = np.full(DIMENSION + 2, huge % 2**32, np.uint32)
    exchange.until("open")
    figures = run.server.finish(1)
    assert figures["aborted"] == Code.SUM_TOO_LARGE and figures["survivors"] == 0
    assert run.server.round() == 1 and hash_of(run.server) == run.start
    assert run.charged == charged


@pytest.mark.parametrize("stage", ["advertise", "mask", "unmask"])
def test_a_server_that_died_in_mid_exchange_says_that_it_is_lost(
    make_exchange: Make, tmp_path: Path, stage: str
) -> None:
    run = Run(tmp_path, make_exchange, **SKELLAM)
    exchange = run.begin().until(stage)
    charged = run.charged
    answers = [exchange.ask(name) for name in exchange.inbox]
    run.restart()
    collected = run.server.collect(stage, answers)
    assert (collected.aborted, collected.answered, collected.frames) == ("exchange lost", 0, {})
    assert hash_of(run.server) == run.start and run.charged == charged
    run.check_given_up(Code.LOST)
    second = run.begin()
    assert second.plan.exchange > max(run.charged) >= 1
    for frame in answers:
        second.give(frame)
    second.until("open")
    assert run.server.finish(2)["survivors"] == 5


def test_a_round_that_is_finished_without_a_word_about_its_exchange_is_lost(
    make_exchange: Make, tmp_path: Path
) -> None:
    run = Run(tmp_path, make_exchange)
    run.begin().until("open")
    run.restart()
    assert run.server.finish(1) == {"aborted": Code.LOST}
    assert run.server.round() == 0 and hash_of(run.server) == run.start
    run.check_given_up(Code.LOST)


def test_an_opened_sum_is_applied_once_and_to_its_own_round(make_exchange: Make, tmp_path: Path) -> None:
    run = Run(tmp_path, make_exchange)
    run.begin().until("open")
    with contextlib.suppress(ValueError):
        run.server.finish(2)
    assert hash_of(run.server) == run.start
    run.server.finish(1)
    once = hash_of(run.server)
    assert once != run.start
    with contextlib.suppress(ValueError):
        run.server.finish(2)
    assert hash_of(run.server) == once
