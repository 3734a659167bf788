"""One round in the clear: every chunk of clients comes back as one weighted sum, and the server adds the sums up.

The driver passes references on: sums go from the slots to the server and not through it.
"""

from collections import Counter
from dataclasses import asdict
from time import monotonic
from typing import Any

import numpy as np

from fedtalk_ray.actors.parameter_server import ask
from fedtalk_ray.actors.pool import Pool, missing_clients
from fedtalk_ray.errors import TrainingError
from fedtalk_ray.federation.aggregation import normalised
from fedtalk_ray.federation.failure_policy import describe
from fedtalk_ray.messages import ClientReport, FitReport


def plain_round(
    pool: Pool,
    server: Any,
    number: int,
    cohort: list[str],
    shared: Any,
    enough: int | None,
    *,
    charge: bool,
) -> dict[str, Any]:
    """Runs round `number`; returns its line for the history.

    enough: clients that close the round. charge: the server adds noise, so who answered is charged for it.
    Raises `QuorumLost`, and `RoundLost` when the sums were lost with their node.
    """
    started = monotonic()
    outcomes = pool.run(
        "fit",
        cohort,
        number,
        shared,
        payload=True,
        stoppable=True,
        enough=enough,
        done=lambda result: len(result.clients),
    )
    answers: list[FitReport] = [outcome.result for outcome in outcomes if outcome.result is not None]
    answered = [client for answer in answers for client in answer.clients]
    lost, refused = missing_clients(outcomes), Counter[str]()
    for answer in answers:
        refused.update(answer.refused)
    # Who refused did answer.
    spoke = len(answered) + refused.total()
    pool.policy.check_quorum(number, spoke, min(len(cohort), enough or len(cohort)), lost)
    if not answered:
        raise TrainingError(
            f"round {number}: no client has an update ({describe(refused + lost)}); the slots' logs say what was "
            "not finite, often a local.learning_rate that is too large; the last checkpoint is intact"
        )
    trained = monotonic()
    sums = [outcome.payload for outcome in outcomes if outcome.result is not None and outcome.result.clients]
    charged = sorted(answered) if charge else None
    norm = ask(server, "apply", number, *sums, cohort=charged)
    record = {
        "round": number,
        "aggregation": "plain",
        "update_norm": norm,
        "counts": {"cohort": len(cohort), "trained": len(answered)},
        "bytes_up": len(sums) * 4 * len(pool.vector),
        "stage_seconds": {"train": round(trained - started, 3), "aggregate": round(monotonic() - trained, 3)},
    }
    if lost or refused:
        record["refused"] = lost + refused
    return record | clients_of(sorted(answered), answers)


def clients_of(answered: list[str], answers: list[FitReport]) -> dict[str, Any]:
    """What clients report in the clear, with their shares of the sum; nothing where they report nothing."""
    reports: dict[str, ClientReport] = {report.client: report for answer in answers for report in answer.reports}
    if not reports:
        return {}
    shares = normalised(reports[client].weight for client in answered)
    losses = [reports[client].losses for client in answered]
    return {
        "loss": {name: float(np.mean([terms[name] for terms in losses])) for name in losses[0]},
        "clients": [asdict(reports[client]) | {"share": share} for client, share in zip(answered, shares, strict=True)],
    }
