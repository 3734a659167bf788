"""Aggregation strategies: how much each client's update counts, and what a client adds to its loss.

A strategy is one file here, named as the configuration names it, with a function `make(config) -> Strategy`.
"""

import importlib
import pkgutil
from typing import Protocol

from fedtalk_ray.errors import ConfigError
from fedtalk_ray.recipe import StrategyConfig
from fedtalk_ray.settings import PrivacyConfig


class Strategy(Protocol):
    """Evaluated on the client, so that under secure aggregation the server never learns a weight."""

    proximal: float
    """FedProx's mu; 0 for none."""
    score_alpha: float | None
    """ISFA's alpha where a reliability score is needed, else None: then no client spends time on one."""

    def weight(self, samples: int, score: float | None) -> float:
        """The unnormalised weight of a client with `samples` training frames; shares are weight / sum of weights."""


def client_weight(
    strategy: Strategy, samples: int, score: float | None, bounds: PrivacyConfig | None
) -> tuple[int, float]:
    """Training frames that count, and the client's aggregation weight omega_k.

    bounds: public ones, with which one client's weight is bounded whatever it holds; None in the clear.
    """
    if bounds is None:
        return samples, strategy.weight(samples, score)
    samples = min(samples, bounds.samples_cap)
    reference = bounds.weight_reference or strategy.weight(bounds.samples_cap, 1.0)
    return samples, strategy.weight(samples, score) / reference


def available() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_strategy(config: StrategyConfig) -> Strategy:
    """The strategy that the configuration names. Raises `ConfigError` for an unknown name."""
    if config.name not in available():
        raise ConfigError(f"strategy.name is {config.name!r}; known strategies: {', '.join(available())}")
    return importlib.import_module(f"{__name__}.{config.name}").make(config)
