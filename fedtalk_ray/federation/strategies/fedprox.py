"""FedProx (Li et al. 2020): FedAvg whose clients are held near the round's model by mu / 2 * ||theta - theta_t||^2."""

from fedtalk_ray.federation.strategies.fedavg import FedAvg
from fedtalk_ray.recipe import StrategyConfig


def make(config: StrategyConfig) -> FedAvg:
    return FedAvg(proximal=config.mu)
