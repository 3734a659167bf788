"""One secure round over the slots: train, then the protocol's five stages, each a call to every slot and one to the
server. Clients of a slot that dies drop out, and the survivors' shares take their masks off the sum; while they still
train, another slot takes them up.

The driver passes references on: masked vectors go from the slots to the server and not through it.
"""

from collections import Counter
from time import monotonic
from typing import Any

from fedtalk_ray.actors.parameter_server import ask
from fedtalk_ray.actors.pool import DIED, LATE, SlotPool, missing_clients
from fedtalk_ray.actors.ray_errors import RoundLost
from fedtalk_ray.actors.slot import Slot
from fedtalk_ray.messages import Collected
from fedtalk_ray.privacy.protocol import STAGES, Code


def secure_round(
    pool: SlotPool, server: Any, number: int, cohort: list[str], shared: Any, enough: int | None
) -> dict[str, Any]:
    """Runs round `number`; returns its line for the history. The model is as it was where that says `aborted`.

    enough: clients that close the training. Raises `QuorumLost`, and `RoundLost` when the server's exchange is gone.
    """
    plan = ask(server, "begin", number, cohort, pool.one("backbone"))
    seconds: dict[str, float] = {}
    refused: Counter[str] = Counter()
    counts: dict[str, int] = {"cohort": len(cohort)}
    started = monotonic()
    seats = _train(pool, cohort, shared, plan, enough, refused)
    counts["trained"] = sum(len(clients) for _, clients in seats)
    # Who refused did answer: with too few left the protocol itself gives the round up, and the run goes on.
    answered = len(cohort) - sum(refused[why] for why in (DIED, LATE))
    pool.policy.check_quorum(number, answered, min(len(cohort), enough or len(cohort)), refused)
    seconds["train"] = monotonic() - started
    frames: dict[str, bytes] = {client: b"" for _, clients in seats for client in clients}
    collected = Collected({}, 0, {})
    for stage in STAGES:
        started = monotonic()
        arrived = _answers(pool, number, stage, seats, frames, refused)
        collected = ask(server, "collect", stage, *arrived)
        counts[stage], frames = collected.answered, collected.frames
        seconds[stage] = monotonic() - started
        refused.update(collected.rejected)
        if collected.aborted == Code.LOST:
            raise RoundLost("the parameter server came back without the exchange")
        if collected.aborted:
            break
    figures = ask(server, "finish", number, collected.aborted)
    if figures.get("aborted") == Code.LOST:
        raise RoundLost("the parameter server came back without the sum")
    return {
        "round": number,
        "aggregation": "secure",
        **figures,
        "counts": counts,
        "refused": refused,
        "bytes_up": 4 * len(pool.vector) * counts.get("mask", 0),
        "stage_seconds": {stage: round(value, 3) for stage, value in seconds.items()},
    }


def _train(
    pool: SlotPool,
    cohort: list[str],
    shared: Any,
    plan: bytes,
    enough: int | None,
    refused: Counter[str],
) -> list[tuple[Slot, list[str]]]:
    """Which clients are ready, and on which slot their updates lie. Who is not is counted by the reason."""
    outcomes = pool.run(
        "train",
        cohort,
        shared,
        plan,
        stoppable=True,
        enough=enough,
        done=lambda result: len(result.clients),
    )
    refused.update(missing_clients(outcomes))
    seats = []
    for outcome in outcomes:
        if outcome.result is not None and outcome.slot is not None:
            seats.append((outcome.slot, list(outcome.result.clients)))
            refused.update(outcome.result.refused)
    return seats


def _answers(
    pool: SlotPool,
    number: int,
    stage: str,
    seats: list[tuple[Slot, list[str]]],
    frames: dict[str, bytes],
    refused: Counter[str],
) -> list[Any]:
    """References to everybody's answers to one stage."""
    by_slot: dict[Slot, dict[str, bytes]] = {}
    for slot, clients in seats:
        asked = {client: frames[client] for client in clients if client in frames}
        if asked and not pool.has(slot):
            refused[DIED] += len(asked)
        elif asked:
            by_slot.setdefault(slot, {}).update(asked)
    calls, payloads = [], []
    for slot, asked in by_slot.items():
        answer, payload = slot.call("answer", stage, asked, label=f"slot.{stage}", returns=2)
        calls.append((slot, answer))
        payloads.append(payload)
    arrived = []
    for (slot, _), payload, answers in zip(calls, payloads, pool.gather(calls), strict=True):
        if answers is None:
            refused[DIED] += len(by_slot[slot])
            continue
        arrived.append(payload)
        refused.update(answers.refused)
    return arrived
