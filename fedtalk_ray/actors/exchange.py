"""One secure round over the slots: train, then the protocol's five stages, each a call to every slot and one to the
server. Clients of a slot that dies drop out, and the survivors' shares take their masks off the sum.

The driver passes references on: masked vectors go from the slots to the server and not through it.
"""

from time import monotonic
from typing import Any

import ray

from fedtalk_ray.actors.pool import Seat, SlotPool, fetch
from fedtalk_ray.messages import Answers, Collected
from fedtalk_ray.privacy.protocol import STAGES


def secure_round(pool: SlotPool, server: Any, number: int, cohort: list[str], shared: Any) -> dict[str, Any]:
    """Runs round `number`; returns its line for the history. The model is as it was where that says `aborted`."""
    begin = server.begin.options(name=f"round{number}.begin")
    plan = fetch(begin.remote(number, cohort, pool.one("backbone")))
    seats = pool.seats(cohort)
    seconds: dict[str, float] = {}
    refused: dict[str, int] = {}
    counts: dict[str, int] = {"cohort": len(cohort)}
    started = monotonic()
    label = f"round{number}.train"
    calls = [(seat, seat.slot.train.options(name=label).remote(seat.clients, number, shared, plan)) for seat in seats]
    trained = {name for _, answers in _answers(pool, calls, refused) for name in answers.clients}
    counts["trained"] = len(trained)
    seconds["train"] = monotonic() - started
    frames: dict[str, bytes] = dict.fromkeys(trained, b"")
    collected = Collected({}, 0, {})
    for stage in STAGES:
        started = monotonic()
        calls, payloads = [], {}
        for seat in seats:
            asked = {client: frames[client] for client in seat.clients if client in frames}
            if asked and pool.has(seat):
                options = {"num_returns": 2, "name": f"round{number}.{stage}"}
                said, payloads[seat] = seat.slot.answer.options(**options).remote(stage, asked)
                calls.append((seat, said))
        arrived = [payloads[seat] for seat, _ in _answers(pool, calls, refused)]
        collect = server.collect.options(name=f"round{number}.collect")
        collected = fetch(collect.remote(stage, *arrived))
        counts[stage], frames = collected.answered, collected.frames
        seconds[stage] = monotonic() - started
        for code, messages in collected.rejected.items():
            refused[code] = refused.get(code, 0) + messages
        if collected.aborted:
            break
    figures = fetch(server.finish.options(name=f"round{number}.finish").remote(number, collected.aborted))
    return {
        "round": number,
        "aggregation": "secure",
        **figures,
        "counts": counts,
        "refused": refused,
        "bytes_up": 4 * len(pool.vector) * counts.get("mask", 0),
        "stage_seconds": {stage: round(value, 3) for stage, value in seconds.items()},
    }


def _answers(pool: SlotPool, calls: list[tuple[Seat, Any]], refused: dict[str, int]) -> list[tuple[Seat, Answers]]:
    """Whoever answered, in the order of the calls. A dead slot leaves the pool; refusals are counted by their code."""
    heard: list[tuple[Seat, Answers]] = []
    if not calls:
        return heard
    ray.wait([ref for _, ref in calls], num_returns=len(calls), fetch_local=False)
    for seat, ref in calls:
        answers = pool.result_of(seat, ref)
        if answers is None:
            refused["slot died"] = refused.get("slot died", 0) + len(seat.clients)
            continue
        heard.append((seat, answers))
        for code in answers.refused.values():
            refused[code] = refused.get(code, 0) + 1
    return heard
