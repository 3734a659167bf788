"""A driver whose slots meet a breakpoint in round 1 and an exception in round 2: what docs/debugging.md says to enter.

python -m tests.ray.debugged RUN
"""

import sys
from typing import Any

import numpy as np

from fedtalk_ray.actors.connection import connect
from fedtalk_ray.actors.pool import SlotPool
from fedtalk_ray.config import parse_config
from fedtalk_ray.settings import TrainConfig


class Stops:
    """Stands where `ClientSlot` would."""

    ASKED = frozenset({"start", "fit"})

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def start(self) -> np.ndarray:
        return np.zeros(3, np.float32)

    def fit(self, clients: list[str], round_number: int) -> list[str]:
        client = clients[0]
        if client == "s23" and round_number == 1:
            breakpoint()
        if client == "s23" and round_number == 2:
            raise ValueError(f"{client} is broken")
        return clients


def main(run: str) -> None:
    tree: dict[str, Any] = {"run": run, "shards": "none", "pretrained": "none", "aggregation": "plain"}
    config = parse_config(tree | {"debug": True, "address": "local"}, "test")
    connect(config.address, debug=config.debug)
    pool = SlotPool(config, Stops)
    for number in (1, 2):
        outcomes = pool.run("fit", ["s1", "s23"], number)
        print(f"round {number}: {[outcome.result for outcome in outcomes]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
