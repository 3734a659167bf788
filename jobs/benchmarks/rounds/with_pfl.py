"""The same rounds in pfl-research: its own FederatedAveraging, model, local SGD and simulated backend, one process.

python -m jobs.benchmarks.rounds.with_pfl --clients 8 --rounds 11 --out pfl.json

Needs the environment that `jobs.benchmarks.compare_rounds` makes. Evaluation is off: pfl evaluates every client before
and after training in round 0 whatever the frequency, so that flag is taken back. Users come in turn from the
population (pfl's `minimize_reuse`, which its documentation recommends).
"""

import os

os.environ["PFL_PYTORCH_DEVICE"] = "cpu"

from dataclasses import replace
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend  # type: ignore[import-not-found]
from pfl.algorithm.base import NNAlgorithmParams  # type: ignore[import-not-found]
from pfl.algorithm.federated_averaging import FederatedAveraging  # type: ignore[import-not-found]
from pfl.callback.base import TrainingProcessCallback  # type: ignore[import-not-found]
from pfl.data.federated_dataset import FederatedDataset  # type: ignore[import-not-found]
from pfl.data.pytorch import PyTorchTensorDataset  # type: ignore[import-not-found]
from pfl.data.sampling import get_user_sampler  # type: ignore[import-not-found]
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams  # type: ignore[import-not-found]
from pfl.metrics import Metrics  # type: ignore[import-not-found]
from pfl.model.pytorch import PyTorchModel  # type: ignore[import-not-found]
from torch.nn.utils import vector_to_parameters

from jobs.benchmarks.rounds.measure import Meter, options, write
from jobs.benchmarks.rounds.work import BATCH, LEARNING_RATE, STEPS, client_data, flat, initial_vector, network


class Perceptron(torch.nn.Module):
    """The network with the two methods that pfl asks of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        vector_to_parameters(torch.from_numpy(initial_vector()), self.parameters())

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.network(images), labels)

    def metrics(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        return {}


class Averaging(FederatedAveraging):
    def get_next_central_contexts(self, *arguments: Any, **named: Any) -> tuple[Any, Any, Any]:
        contexts, model, metrics = super().get_next_central_contexts(*arguments, **named)
        contexts = contexts and tuple(replace(context, do_evaluation=False) for context in contexts)
        return contexts, model, metrics


class Laps(TrainingProcessCallback):
    """Closes a round: the meter's lap, and a new cohort."""

    def __init__(self, cohorts: list[list[int]], rounds: int) -> None:
        self.meter, self.cohorts, self.rounds = Meter(), cohorts, rounds

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Any]:
        self.meter.lap()
        if len(self.cohorts) < self.rounds:
            self.cohorts.append([])
        return False, Metrics()


def main() -> None:
    chosen = options()
    cohorts: list[list[int]] = [[]]

    def user(client: int) -> Any:
        cohorts[-1].append(client)
        return PyTorchTensorDataset(client_data(client, len(cohorts) - 1), user_id=str(client))

    users = FederatedDataset(user, get_user_sampler("minimize_reuse", list(range(chosen.population))))
    perceptron = Perceptron()
    model = PyTorchModel(perceptron, torch.optim.SGD, torch.optim.SGD(perceptron.parameters(), lr=1.0))
    laps = Laps(cohorts, chosen.rounds)
    Averaging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=chosen.rounds,
            evaluation_frequency=chosen.rounds + 1,
            train_cohort_size=chosen.clients,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=users, val_data=None),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=None,
            local_num_steps=STEPS,
            local_batch_size=BATCH,
            local_learning_rate=LEARNING_RATE,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[laps],
        send_metrics_to_platform=False,  # prints five lines a round
    )
    write("pfl", chosen, laps.meter, flat(perceptron), cohorts, laps.meter.memory())


if __name__ == "__main__":
    main()
