"""What is done with the released parameters between two rounds: their held-out loss, and samples to look at."""

from typing import Any

import numpy as np

from fedtalk_ray.actors.pool import SlotPool, result_of
from fedtalk_ray.messages import HeldOutLoss, StatisticsUpdate
from fedtalk_ray.runs.folder import RunFolder


def held_out_loss(pool: SlotPool, people: list[str], number: int, shared: Any) -> float:
    """The mean over these people, each on its own clips, clients with their own adapters."""
    outcomes = pool.run("held_out_loss", people, number, shared)
    parts: list[HeldOutLoss] = [result_of(outcome) for outcome in outcomes]
    return sum(part.total for part in parts) / sum(part.clients for part in parts)


def release(pool: SlotPool, run: RunFolder, speakers: list[str], number: int, shared: Any) -> None:
    """Makes these parameters the run's released model, and lets it speak a held-out clip of each speaker.

    A client's sample stays in the client's folder, since it shows the client's face.
    """
    pool.one("export", shared, number)
    for outcome in pool.run("sample", speakers, number, shared):
        result_of(outcome)


def share_residual_units(pool: SlotPool, clients: list[str]) -> None:
    """Without a pretrained backbone, these clients' summed latent statistics fix the units for everybody."""
    parts: list[StatisticsUpdate] = [result_of(outcome) for outcome in pool.run("statistics", clients)]
    pool.tell_all("use_statistics", StatisticsUpdate(np.sum([part.sums for part in parts], axis=0)))
