"""What a run checks before it starts anything."""

import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedtalk_ray import rounds
from fedtalk_ray.actors.ray_errors import RoundLost
from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import RunError, ShardError
from fedtalk_ray.federation.failure_policy import FailurePolicy, QuorumLost
from fedtalk_ray.federation.secure_aggregator import BudgetSpent
from fedtalk_ray.rounds import Federation
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.resume import open_run
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import ClipEntry, Manifest
from fedtalk_ray.shards.people import population_of


def manifest(**clips: int) -> Manifest:
    """Identities with so many clips, split as the shard writer splits them."""
    splits = ("train", "val", "test")
    entries = {
        name: [ClipEntry(f"c{k}", splits[k] if count > 1 else "test", 75, 1) for k in range(count)]
        for name, count in clips.items()
    }
    return Manifest("grid", 64, 25, 16_000, "patch", "f", {}, entries)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(**changes: object) -> TrainConfig:
        return parse_config({"run": str(tmp_path / "run"), "shards": "s", "pretrained": "p"} | changes, "test")

    return make


def test_a_client_with_one_clip_is_refused_by_name(config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ShardError, match="client 'lonely' has 1 clip"):
        population_of(config(cohort={"clients": ["a", "lonely"]}), manifest(a=2, lonely=1))


def test_shards_without_any_client_are_refused(config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ShardError, match="hold no client"):
        population_of(config(), manifest(x=1, y=1))


def test_what_clients_keep_lies_apart_for_its_owner_alone(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Whoever gets the run's folder gets nobody's key, face or voice."""
    run = RunFolder(Path(config().run))
    open_run(run, config(), resume=False)
    assert run.clients_folder == tmp_path / "run.clients"
    for private in (run.checkpoints, run.clients_folder):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    (tmp_path / "newest").symlink_to(run.path)
    assert RunFolder(tmp_path / "newest").clients_folder == run.clients_folder
    assert RunFolder(tmp_path / "run" / "checkpoints" / "..").clients_folder == run.clients_folder


def test_a_new_run_does_not_begin_over_what_clients_of_an_earlier_one_keep(
    config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """They would refuse every round that they answered in it."""
    (tmp_path / "run.clients" / "ann").mkdir(parents=True)
    with pytest.raises(RunError, match=r"run\.clients holds what clients of an earlier run keep"):
        open_run(RunFolder(Path(config().run)), config(), resume=False)
    assert not (tmp_path / "run").exists()


def test_resuming_what_never_started_is_refused(config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(RunError, match="does not exist, so it cannot be resumed"):
        open_run(RunFolder(Path(config().run)), config(), resume=True)


def test_a_driver_starts_without_what_only_slots_need() -> None:
    """They take longer to import than Ray to start; scipy's optimiser is for who plans a budget."""
    heavy = "torch diffusers transformers peft opacus scipy.optimize"
    asks = f"import sys, fedtalk_ray.rounds; print(*sys.modules.keys() & set({heavy.split()}))"
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


def test_what_has_lost_the_parameters_begins_again_with_new_ones(config: Callable[..., TrainConfig]) -> None:
    sent = iter(["first", "second", "third"])
    server = SimpleNamespace(shared=SimpleNamespace(remote=lambda: next(sent)))

    def work(shared: str) -> str:
        if shared != "third":
            raise RoundLost(f"the {shared} are gone")
        return shared

    def begun(retries: int) -> tuple[str, int]:
        chosen = config(failures={"retries": retries})
        pool: Any = SimpleNamespace(policy=FailurePolicy(chosen.failures))
        federation = Federation(chosen, pool=pool, server=server)
        return federation.with_parameters("shared", work)

    assert begun(retries=2) == ("third", 3)
    sent = iter(["first", "second", "third"])
    with pytest.raises(RoundLost, match="the second are gone"):
        begun(retries=1)


@pytest.mark.parametrize(
    "error",
    [kind("it failed") for kind in (QuorumLost, ShardError, RoundLost, ValueError)],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["secure_round", "plain_round", "_enrol"])
def test_a_round_with_which_the_run_ends_is_given_up_first(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    """The server charges it: that it failed, whatever by, may tell of who was there."""
    asked = ending(config, monkeypatch, error, where)
    assert asked == [("give_up", 3, [f"c{number}" for number in range(8)])]


@pytest.mark.parametrize("where", ["secure_round", "plain_round"])
def test_a_round_that_would_overspend_is_not_given_up(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Nobody was asked, and there is nothing left to charge it to."""
    assert ending(config, monkeypatch, BudgetSpent("round 3 would bring epsilon to 9"), where) == []


def ending(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> list[tuple[Any, ...]]:
    """What the server is asked in a round that ends by an error, which comes out as it is."""
    asked: list[tuple[Any, ...]] = []

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(rounds, "ask", lambda _, *call: asked.append(call))
    monkeypatch.setattr(Federation, "_enrol", lambda *_: None)
    monkeypatch.setattr(*((Federation, where) if where == "_enrol" else (rounds, where)), fail)
    server: Any = SimpleNamespace(shared=SimpleNamespace(remote=lambda: "shared"))
    chosen = config(aggregation="plain" if where == "plain_round" else "secure", failures={"retries": 0})
    pool: Any = SimpleNamespace(policy=FailurePolicy(chosen.failures))
    with pytest.raises(type(error)) as caught:
        Federation(chosen, pool=pool, server=server).run_round(3, [f"c{number}" for number in range(8)])
    assert caught.value is error
    return asked
