"""Every client counts alike, whatever it holds: the baseline that private weighting has to beat."""

from dataclasses import dataclass

from fedtalk_ray.recipe import StrategyConfig


@dataclass(frozen=True)
class Uniform:
    proximal: float = 0.0
    score_alpha: None = None

    def weight(self, samples: int, score: float | None) -> float:
        """w_k ~ 1."""
        return 1.0


def make(config: StrategyConfig) -> Uniform:
    return Uniform()
