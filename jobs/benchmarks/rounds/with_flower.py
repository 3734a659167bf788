"""The same rounds in Flower's simulation on Ray: a ServerApp with FedAvg, a ClientApp, one actor per worker.

python -m jobs.benchmarks.rounds.with_flower --clients 8 --rounds 11 --workers 2 --out flower.json

Needs the environment that `jobs.benchmarks.compare_rounds` makes. Set so that Flower does well: the model is one flat
array and stays resident in each worker, workers run at the driver's own priority (`RAY_worker_niceness=0`; Ray's
default of 15 loses against anything else on the cores), telemetry, dashboard and evaluation are off.
"""

import os

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray reads it in this spelling)
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict  # type: ignore[import-not-found]
from flwr.clientapp import ClientApp  # type: ignore[import-not-found]
from flwr.serverapp import Grid, ServerApp  # type: ignore[import-not-found]
from flwr.serverapp.strategy import FedAvg  # type: ignore[import-not-found]
from flwr.simulation import run_simulation  # type: ignore[import-not-found]

from jobs.benchmarks.rounds.measure import Meter, options, write
from jobs.benchmarks.rounds.work import EXAMPLES, initial_vector, local_update

client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    (vector,) = message.content["arrays"].to_numpy_ndarrays()
    client, server_round = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
    trained = vector + local_update(vector, client, server_round - 1)
    answer = {
        "arrays": ArrayRecord([trained]),
        "metrics": MetricRecord({"num-examples": EXAMPLES, "client": client}),
    }
    return Message(content=RecordDict(answer), reply_to=message)


class Averaging(FedAvg):
    """FedAvg that notes each round's cohort and closes its lap."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.meter = Meter()
        self.cohorts: list[list[int]] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[Any, Any]:
        answers = list(replies)
        aggregated = super().aggregate_train(server_round, answers)
        self.cohorts.append([int(m.content["metrics"]["client"]) for m in answers if not m.has_error()])
        self.meter.lap()
        return aggregated


def main() -> None:
    chosen = options()
    server_app = ServerApp()
    final: list[np.ndarray] = []
    memory: list[float] = []
    strategy = Averaging(
        fraction_train=chosen.clients / chosen.population,
        min_train_nodes=chosen.clients,
        min_available_nodes=chosen.population,
        fraction_evaluate=0.0,
    )

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        result = strategy.start(grid, ArrayRecord([initial_vector()]), num_rounds=chosen.rounds)
        final.extend(result.arrays.to_numpy_ndarrays())
        memory.append(strategy.meter.memory())  # here, while the workers still live

    run_simulation(
        server_app,
        client_app,
        num_supernodes=chosen.population,
        backend_config={
            "init_args": {"address": "local", "num_cpus": chosen.workers, "log_to_driver": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    write("flower", chosen, strategy.meter, final[0], strategy.cohorts, memory[0])


if __name__ == "__main__":
    main()
