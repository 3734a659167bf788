"""FedAvg (McMahan et al. 2017): clients count by their number of samples."""

from dataclasses import dataclass

from fedtalk_ray.recipe import StrategyConfig


@dataclass(frozen=True)
class FedAvg:
    proximal: float = 0.0
    score_alpha: None = None

    def weight(self, samples: int, score: float | None) -> float:
        """w_k ~ n_k."""
        return float(samples)


def make(config: StrategyConfig) -> FedAvg:
    return FedAvg()
