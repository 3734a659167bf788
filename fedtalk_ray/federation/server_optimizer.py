"""The server's step: the averaged update, taken as a gradient (Reddi et al. 2021)."""

from typing import Protocol

import numpy as np

from fedtalk_ray.settings import ServerConfig


class ServerOptimizer(Protocol):
    state: dict[str, np.ndarray]
    """Arrays float32 [D] that a checkpoint must hold."""

    def step(self, parameters: np.ndarray, update: np.ndarray) -> np.ndarray:
        """New parameters float32 [D] from the old ones and the averaged update (a descent direction)."""


class Sgd:
    """m <- momentum * m + update; theta <- theta + rate * m. Without momentum and at rate 1 this is FedAvg."""

    def __init__(self, learning_rate: float, momentum: float, dimension: int) -> None:
        self._rate, self._momentum = learning_rate, momentum
        self.state = {"momentum": np.zeros(dimension, np.float32)} if momentum else {}

    def step(self, parameters: np.ndarray, update: np.ndarray) -> np.ndarray:
        if self._momentum:
            update = self.state["momentum"] = np.float32(self._momentum) * self.state["momentum"] + update
        return parameters + np.float32(self._rate) * update


class Adam:
    """FedAdam, without bias correction as published: m, v are exponential means of update and its square."""

    def __init__(self, config: ServerConfig, dimension: int) -> None:
        self._config = config
        tau = config.epsilon
        self.state: dict[str, np.ndarray] = {
            "mean": np.zeros(dimension, np.float32),
            "square": np.full(dimension, tau * tau, np.float32),
        }

    def step(self, parameters: np.ndarray, update: np.ndarray) -> np.ndarray:
        beta1, beta2 = np.float32(self._config.momentum), np.float32(self._config.beta2)
        mean = self.state["mean"] = beta1 * self.state["mean"] + (np.float32(1) - beta1) * update
        square = self.state["square"] = beta2 * self.state["square"] + (np.float32(1) - beta2) * update * update
        rate, tau = np.float32(self._config.learning_rate), np.float32(self._config.epsilon)
        return parameters + rate * mean / (np.sqrt(square) + tau)


def make_optimizer(config: ServerConfig, dimension: int) -> ServerOptimizer:
    if config.optimizer == "sgd":
        return Sgd(config.learning_rate, config.momentum, dimension)
    return Adam(config, dimension)
