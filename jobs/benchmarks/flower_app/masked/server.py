"""Flower's server: rounds of SecAgg+ over all nodes, and the seconds of each."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common import Context, ndarrays_to_parameters  # type: ignore[import-not-found]
from flwr.server import Grid, LegacyContext, ServerApp, ServerConfig  # type: ignore[import-not-found]
from flwr.server.strategy import FedAvg  # type: ignore[import-not-found]
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow  # type: ignore[import-not-found]

app = ServerApp()

PARTNERS = 61
"""Of a client, itself among them: as many as our clients have (odd, as SecAgg+ asks)."""


class Timed(FedAvg):
    """FedAvg that notes how long a round took, and whose updates were in its sum."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.rounds: list[tuple[float, int]] = []
        self._started = 0.0

    def configure_fit(self, *given: Any, **named: Any) -> Any:
        self._started = time.monotonic()
        return super().configure_fit(*given, **named)

    def aggregate_fit(self, server_round: int, results: list[Any], failures: list[Any]) -> Any:
        self.rounds.append((time.monotonic() - self._started, len(results)))
        return super().aggregate_fit(server_round, results, failures)


@app.main()
def main(grid: Grid, context: Context) -> None:
    nodes, values = int(context.run_config["nodes"]), int(context.run_config["values"])
    while len(list(grid.get_node_ids())) < nodes:
        time.sleep(0.5)
    strategy = Timed(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=nodes,
        min_available_clients=nodes,
        initial_parameters=ndarrays_to_parameters([np.zeros(values, np.float32)]),
    )
    config = ServerConfig(num_rounds=int(context.run_config["rounds"]))
    shares = min(nodes, PARTNERS)
    masked = SecAggPlusWorkflow(num_shares=shares, reconstruction_threshold=2 * shares // 3, timeout=1800)
    DefaultWorkflow(fit_workflow=masked)(grid, LegacyContext(context=context, config=config, strategy=strategy))
    Path(str(context.run_config["out"])).write_text(json.dumps(strategy.rounds))
