"""The same rounds by this project: its slot pool, its rounds, its parameter server with a checkpoint every round.

python -m jobs.benchmarks.rounds.with_fedtalk --clients 8 --rounds 11 --workers 2 --out ours.json

Only the work inside a slot is another than in `fedtalk train`: the perceptron in place of the denoiser. The history is
written as always; the dashboard is off, as in the others. FEDTALK_NOISE=1 adds central Gaussian noise and clipping, for
the cost of differential privacy.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fedtalk_ray.actors.connection import connect
from fedtalk_ray.actors.parameter_server import start_server
from fedtalk_ray.actors.pool import SlotPool
from fedtalk_ray.config import parse_config
from fedtalk_ray.federation.cohorts import sample_cohort
from fedtalk_ray.messages import FitReport, PlainUpdate
from fedtalk_ray.rounds import Federation
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import History
from fedtalk_ray.settings import TrainConfig
from jobs.benchmarks.rounds.measure import Meter, options, write

CLIP_NORM = 1.0
NOISE_MULTIPLIER = 1e-3
"""So little that the model stays what it is: noise that drowns it saturates its units, whose tiny gradients are slow to
compute, and the cost of that would pass for the cost of privacy. The work of clipping and noise is the same."""


class Perceptron:
    """A slot with the perceptron resident; clients are numbers."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config

    def start(self) -> np.ndarray:
        from jobs.benchmarks.rounds.work import initial_vector, local_update

        self._update = local_update
        return initial_vector()

    def stop(self, call: int) -> None:
        """Nobody is late here."""

    def fit(
        self, clients: list[str], round_number: int, shared: np.ndarray, call: int
    ) -> tuple[FitReport, PlainUpdate]:
        total = np.zeros_like(shared)
        for client in clients:
            update = self._update(shared, int(client), round_number - 1)
            if self._config.privacy.mechanism != "none":
                from fedtalk_ray.privacy.clipping import weigh_and_clip

                update = weigh_and_clip(update, 1.0, CLIP_NORM)[0].astype(np.float32)
            total += update
        return FitReport(tuple(clients)), PlainUpdate(round_number, total, float(len(clients)))


class Numbers:
    """The population: 0, 1, 2, ..., never listed."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        if index >= self._count:
            raise IndexError(index)
        return f"{index:07d}"


def configuration(clients: int, rounds: int, workers: int, run: str) -> TrainConfig:
    tree: dict[str, Any] = {
        "run": run,
        "shards": "none",
        "pretrained": "none",
        "rounds": rounds,
        "aggregation": "plain",
        "strategy": {"name": "uniform"},
        "cohort": {"size": clients},
        "slots": {"count": workers},
        "address": "local",
    }
    if os.environ.get("FEDTALK_NOISE"):
        tree["privacy"] = {
            "mechanism": "gaussian",
            "noise_multiplier": NOISE_MULTIPLIER,
            "clip_norm": CLIP_NORM,
            "view": "server",
        }
        tree["cohort"]["sampling"] = "uniform"
    return parse_config(tree, "benchmark")


def main() -> None:
    chosen = options()
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(chosen.clients, chosen.rounds, chosen.workers, folder)
        meter = Meter()
        connect(config.address)
        pool = SlotPool(config, Perceptron)
        server = start_server(config, pool.vector)
        federation = Federation(config, pool, server)
        history = History(RunFolder(Path(folder)).history_file, keep=0)
        population, cohorts = Numbers(chosen.population), []
        for number in range(1, chosen.rounds + 1):
            cohort = sample_cohort(population, chosen.clients, config.seed, number)  # type: ignore[arg-type]
            pool.fit_to(len(cohort))
            history.after_round(federation.run_round(number, cohort))
            cohorts.append([int(client) for client in cohort])
            meter.lap()
        from ray import get

        vector = get(server.shared.remote())
        write("ours", chosen, meter, np.array(vector), cohorts, meter.memory())
        pool.close()


if __name__ == "__main__":
    main()
