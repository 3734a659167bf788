"""What phases share that take optimiser steps on one module: decoder, identity encoder, sync network, speech."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from fedtalk_ray.errors import TrainingError
from fedtalk_ray.model import adapters
from fedtalk_ray.recipe import StepsConfig
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.optimise import Loss, descend
from fedtalk_ray.training.phases.phase import Fitted, Score, Task, state_digest, until_halted

Losses = Callable[[Task, np.random.Generator], Iterator[Loss]]
"""A supply of losses on a client's clips, at least as many as there are steps."""


class ModuleSteps:
    """A phase that takes optimiser steps on one module."""

    def __init__(
        self,
        module: torch.nn.Module,
        config: StepsConfig,
        losses: Losses,
        device: str = "cpu",
        trained: Callable[[str], bool] = lambda name: True,
        score: Score | None = None,
        frozen_modules: Mapping[str, torch.nn.Module] | None = None,
    ) -> None:
        """trained: which parameters, by their name. score: None where nobody asks for one. frozen_modules:
        others that the losses go through."""
        self._module, self._config, self._losses = module.to(device), config, losses
        self._trained, self._score, self._others = trained, score, dict(frozen_modules or {})

    def _parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [each for each in sorted(self._module.named_parameters()) if self._trained(each[0])]

    def initial(self) -> np.ndarray:
        return adapters.to_vector(self._parameters())

    def fit(self, task: Task) -> Fitted:
        config, parameters = self._config, self._parameters()
        adapters.from_vector(parameters, task.shared)
        self._module.requires_grad_(False).train()
        for _, parameter in parameters:
            parameter.requires_grad_(True)
        # Dropout draws from torch's global generator, whatever it was left at by the client before.
        torch.manual_seed(task.seed)
        try:
            losses = descend(
                [parameter for _, parameter in parameters],
                until_halted(task, self._losses(task, np.random.default_rng(task.seed))),
                config.steps,
                task.pace(config.learning_rate, config.steps).rate,
                weight_decay=config.weight_decay,
            )
            self._module.eval().requires_grad_(False)
            update = adapters.to_vector(parameters) - task.shared
            if not np.isfinite(update).all():
                name = f"{task.phase.name}.learning_rate"
                raise TrainingError(f"its update holds values that are not finite; lower {name}")
            return Fitted(update, losses, reliability=self._score(task) if self._score else None)
        finally:
            # What a client's training made of the model is that client's alone, whatever is asked for next.
            self.finish(task.shared)

    def finish(self, vector: np.ndarray) -> None:
        adapters.from_vector(self._parameters(), vector)
        self._module.eval().requires_grad_(False)

    def frozen(self) -> bytes:
        state = dict(self._module.state_dict())
        for part, module in self._others.items():
            state |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
        return state_digest(state, (name for name, _ in self._parameters()))


def of_pieces(columns: tuple[str, ...], losses: Callable[[list[Piece], np.random.Generator], Iterator[Loss]]) -> Losses:
    """Losses on all of a client's training pieces, held in memory with these columns."""
    return lambda task, rng: losses(list(task.people.pieces(task.client, "train", columns)), rng)
