"""What a pool of slots does where no slot is up; real slots are in tests/ray/test_faults.py."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from fedtalk_ray.actors import pool as pools
from fedtalk_ray.actors.pool import DIED, LATE, Outcome, SlotPool, missing_clients
from fedtalk_ray.federation.failure_policy import FailurePolicy
from fedtalk_ray.messages import Answers, FitReport


def test_the_deadline_holds_while_no_slot_is_up(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only slot died and another one starts without an end: the round closes on time, and the run does not end."""
    config = make_config(failures={"deadline_s": 0.1}, slots={"count": 1, "placement_timeout_s": 60})
    # Made without `__init__`, which starts real slots.
    pool = SlotPool.__new__(SlotPool)
    starting = SimpleNamespace(starting=object())
    vars(pool).update(_config=config, policy=FailurePolicy(config.failures), _slots=[starting], _calls=0)

    def nothing_arrives(running: list[Any], deadline: float) -> list[Any]:
        time.sleep(max(0.0, deadline - time.monotonic()))
        return []

    monkeypatch.setattr(pool, "_wait", nothing_arrives)
    begun = time.monotonic()
    outcomes = pool.run("fit", ["a", "b"], stoppable=True)
    assert time.monotonic() - begun < 5
    assert [outcome.lost for outcome in outcomes] == [LATE] * len(outcomes)
    assert [client for outcome in outcomes for client in outcome.clients] == ["a", "b"]


@pytest.mark.parametrize(
    ("view", "wanted"), [("release", [4, 4, 4, 4]), ("server", [2, 3, 5, 8])], ids=["hidden", "told"]
)
def test_a_pool_that_grows_does_not_tell_the_size_of_a_hidden_cohort(
    make_config: Any, monkeypatch: pytest.MonkeyPatch, view: str, wanted: list[int]
) -> None:
    """Whoever looks at Prometheus, or at Ray itself, can count the slots."""
    privacy = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0, "view": view}
    slots = {"count": 8, "at_least": 2, "memory_mb": 100, "clients_per_slot": 4}
    config = make_config(aggregation="secure", cohort={"size": 16}, slots=slots, privacy=privacy)
    pool = SlotPool.__new__(SlotPool)
    vars(pool).update(_config=config, policy=FailurePolicy(config.failures), _slots=[])
    asked: list[int] = []
    monkeypatch.setattr(pools, "nodes_of", lambda _: [])
    monkeypatch.setattr(pools.ray, "nodes", list)
    monkeypatch.setattr(pools, "request_resources", lambda bundles: asked.append(len(bundles)))
    monkeypatch.setattr(pool, "_start", lambda _: None)
    monkeypatch.setattr(pool, "_await", lambda _: None)
    for clients in (8, 11, 17, 32):
        pool.fit_to(clients)
    assert asked == wanted


@pytest.mark.parametrize("message", [FitReport, Answers])
def test_whoever_refused_is_not_missing_however_many_had_one_reason(message: Any) -> None:
    """Of five clients two are done and two refuse alike: one is late. Of a chunk that was lost all are missing."""
    result = message(clients=("a", "b"), refused={"not finite": 2})
    outcomes = [Outcome(list("abcde"), None, result), Outcome(["f", "g"], None, lost=DIED)]
    assert missing_clients(outcomes) == {LATE: 1, DIED: 2}
