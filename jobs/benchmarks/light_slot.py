"""A client that trains nothing: its updates are random, everything else is what a real one does in a secure round."""

import numpy as np

from fedtalk_ray.messages import Answers, Plan
from fedtalk_ray.privacy.protocol import Aborted, read_frame
from fedtalk_ray.recipe import PhaseName
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.training.secure_clients import SecureClients


class LightSlot:
    """What `sites.site` asks of a slot."""

    def __init__(self, config: TrainConfig, people: object) -> None:
        self._config = config
        self._phase = config.phases[0]
        self._secure: SecureClients | None = None

    def start(self) -> None:
        """There is nothing to load."""

    def enter(self, phase: PhaseName, results: object) -> None:
        """Goes over to a phase; how long its vector is shows in the next round."""
        self._phase, self._secure = phase, None

    def train(self, clients: list[str], shared: np.ndarray, plan: bytes) -> Answers:
        if self._secure is None:
            # It has no model, so it takes the server's word for what is frozen.
            self._secure = SecureClients(self._config, self._phase, len(shared), read_frame(plan, Plan)[1].backbone)
        try:
            self._secure.open_round(plan)
            for client in clients:
                self._secure.join(client, shared)
                self._secure.offer(client, np.random.default_rng().normal(0, 1e-3, len(shared)).astype(np.float32), 1.0)
        except Aborted as error:
            return Answers((), {str(error.code): len(clients)})
        return Answers(tuple(clients), {})

    def answer(self, stage: str, frames: dict[str, bytes]) -> tuple[Answers, list[np.ndarray]]:
        assert self._secure is not None
        return self._secure.answer(stage, frames)
