"""Identity-Stable Federated Aggregation (PrivFedTalk): clients whose faces stay themselves and move well count more."""

from dataclasses import dataclass
from math import exp

from fedtalk_ray.recipe import StrategyConfig


@dataclass(frozen=True)
class Isfa:
    gamma: float
    score_alpha: float
    proximal: float = 0.0

    def weight(self, samples: int, score: float | None) -> float:
        """w_k ~ n_k exp(gamma s_k), written as n_k exp(gamma (s_k - 1)) so that it never exceeds n_k."""
        if score is None:
            raise ValueError("ISFA weighs by a reliability score and got none")
        return samples * exp(self.gamma * (score - 1))


def make(config: StrategyConfig) -> Isfa:
    return Isfa(config.gamma, config.alpha)
