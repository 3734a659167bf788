"""The parameter server: holds the shared parameters, sums updates, takes the server's step, keeps checkpoints.

A plain class; `fedtalk_ray.actors` makes an actor of it.
"""

from pathlib import Path

import numpy as np

from fedtalk_ray.config import ServerConfig
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.aggregation import average
from fedtalk_ray.federation.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fedtalk_ray.federation.server_optimizer import make_optimizer
from fedtalk_ray.messages import PlainUpdate


class ParameterServer:
    """State: the round, the shared parameters float32 [D], the optimiser. Everything else arrives and leaves."""

    def __init__(self, folder: str, config: ServerConfig, fingerprint: str) -> None:
        """Goes on from the newest checkpoint in `folder`, so a server that died and came back is where it was."""
        self._folder, self._fingerprint = Path(folder), fingerprint
        checkpoint = load_checkpoint(self._folder, fingerprint)
        if checkpoint is None:
            raise RunError(f"{folder} holds no checkpoint to start from")
        self._round, self._parameters = checkpoint.round, checkpoint.parameters
        self._optimizer = make_optimizer(config, len(self._parameters))
        self._optimizer.state.update(checkpoint.optimizer)

    def round(self) -> int:
        """Rounds applied so far."""
        return self._round

    def shared(self) -> np.ndarray:
        """The shared parameters, float32 [D]."""
        return self._parameters

    def apply(self, round_number: int, *updates: PlainUpdate) -> float:
        """Applies one round's updates and checkpoints; returns the norm of the averaged update.

        Repeating a round that was applied already changes nothing (a restarted caller may ask again) and returns 0.
        Raises `ValueError` for updates of another round or of the wrong shape; the parameters then stay as they were.
        """
        if round_number <= self._round:
            return 0.0
        if round_number != self._round + 1 or any(update.round != round_number for update in updates):
            rounds = sorted({round_number, *(update.round for update in updates)})
            raise ValueError(f"updates of rounds {rounds} cannot follow round {self._round}")
        update = average(updates, len(self._parameters))
        # Optimisers replace their arrays and never write into them, so the old state is still whole.
        before = dict(self._optimizer.state)
        parameters = self._optimizer.step(self._parameters, update)
        try:
            save_checkpoint(
                self._folder, Checkpoint(round_number, parameters, self._optimizer.state), self._fingerprint
            )
        except BaseException:
            self._optimizer.state.update(before)
            raise
        self._round, self._parameters = round_number, parameters
        return float(np.linalg.norm(update))
