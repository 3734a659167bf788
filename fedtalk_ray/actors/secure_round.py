"""One secure round over the slots: train, then the protocol's five stages, each a call to every slot and one to the
server. Clients of a slot that dies drop out, and the survivors' shares take their masks off the sum; while they still
train, another slot takes them up.

The driver passes references on: masked vectors go from the slots to the server and not through it.
"""

from collections import Counter
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from fedtalk_ray.actors.parameter_server import ask
from fedtalk_ray.actors.pool import DIED, LATE, Pool, missing_clients
from fedtalk_ray.actors.ray_errors import RoundLost
from fedtalk_ray.actors.slot import Slot
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.cohorts import dealt
from fedtalk_ray.messages import Collected
from fedtalk_ray.privacy.noise import system_rng
from fedtalk_ray.privacy.protocol import STAGES, Code


@dataclass
class Tally:
    """What a round's exchanges took, by stage, and how many clients were in each."""

    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def took(self, stage: str, started: float) -> None:
        """Adds the time since then, as `monotonic` counts it."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + monotonic() - started


def secure_round(
    pool: Pool, server: Any, number: int, cohort: list[str], shared: Any, enough: int | None, groups: int = 1
) -> dict[str, Any]:
    """Runs round `number`; returns its line for the history. The model is as it was where that says `aborted`.

    enough: clients that close the training. groups: into how many the cohort is dealt, each with an exchange of its own
    (`strategy.groups`); `lost_groups` of the line counts those whose sum was not opened, by the reason. Raises
    `QuorumLost`, `RoundLost` when the server's exchange is gone, and `RunError` where all clients have trouble of their
    own.
    """
    tally, aborted, lost = Tally(), None, Counter[str]()
    if groups == 1:
        aborted = _exchange(pool, server, number, cohort, shared, enough, tally)
    else:
        for place, members in enumerate(dealt(cohort, groups, system_rng())):
            ended = _exchange(pool, server, number, members, shared, enough, tally)
            if why := ask(server, "set_aside", number, ended, place == 0):
                lost[why] += 1
    figures = ask(server, "finish", number, aborted, groups)
    if figures.get("aborted") == Code.LOST:
        raise RoundLost("the parameter server came back without the sum")
    return {
        "round": number,
        "aggregation": "secure",
        **figures,
        **({"lost_groups": dict(lost)} if lost else {}),
        "counts": dict(tally.counts),
        "refused": dict(tally.refused),
        "bytes_up": 4 * len(pool.vector) * tally.counts["mask"],
        "stage_seconds": {stage: round(value, 3) for stage, value in tally.seconds.items()},
    }


def _exchange(
    pool: Pool, server: Any, number: int, cohort: list[str], shared: Any, enough: int | None, tally: Tally
) -> str | None:
    """One exchange, up to where its sum lies open; why it was given up, or None."""
    plan = ask(server, "begin", number, cohort, pool.one("backbone"))
    refused: Counter[str] = Counter()
    started = monotonic()
    seats = _train(pool, cohort, shared, plan, enough, refused)
    tally.counts.update(cohort=len(cohort), trained=sum(len(clients) for _, clients in seats))
    # Who refused did answer: with too few left the protocol itself gives the round up, and the run goes on.
    answered = len(cohort) - sum(refused[why] for why in (DIED, LATE))
    pool.policy.check_quorum(number, answered, min(len(cohort), enough or len(cohort)), refused)
    tally.took("train", started)
    frames: dict[str, bytes] = {client: b"" for _, clients in seats for client in clients}
    collected = Collected({}, 0, {})
    for stage in STAGES:
        started = monotonic()
        arrived = _answers(pool, stage, seats, frames, refused)
        collected = ask(server, "collect", stage, *arrived)
        frames = collected.frames
        tally.counts[stage] += collected.answered
        tally.took(stage, started)
        refused.update(collected.rejected)
        if collected.aborted == Code.LOST:
            raise RoundLost("the parameter server came back without the exchange")
        if collected.aborted:
            break
    tally.refused.update(refused)
    if refused[Code.CANNOT_GO_ON] == len(cohort):
        raise RunError(
            f"round {number}: none of {len(cohort)} clients can go on; the slots' logs say why, often a folder that "
            "nobody can read or write; the last checkpoint is intact"
        )
    return collected.aborted


def _train(
    pool: Pool,
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
    pool: Pool,
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
