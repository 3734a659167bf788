"""FedAvg, FedProx and ISFA weights against values worked out by hand, and strategies found by their file."""

from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.errors import ConfigError
from fedtalk_ray.federation.aggregation import normalised
from fedtalk_ray.federation.strategies import available, load_strategy
from fedtalk_ray.recipe import StrategyConfig

SAMPLES = st.integers(1, 10**6)
SCORES = st.floats(0, 1)


def shares(config: StrategyConfig, clients: list[tuple[int, float | None]]) -> list[float]:
    strategy = load_strategy(config)
    return normalised([strategy.weight(samples, score) for samples, score in clients])


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_fedavg_and_fedprox_count_samples(name: str) -> None:
    assert shares(StrategyConfig(name=name), [(300, None), (100, None), (100, 0.9)]) == pytest.approx([0.6, 0.2, 0.2])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(SAMPLES, SCORES), min_size=1, max_size=6), st.floats(0, 20))
def test_isfa_shares_are_n_exp_gamma_s_over_their_sum(clients: list[tuple[int, float]], gamma: float) -> None:
    terms = [samples * exp(gamma * score) for samples, score in clients]
    expected = [term / sum(terms) for term in terms]
    assert shares(StrategyConfig(name="isfa", gamma=gamma), clients) == pytest.approx(expected, rel=1e-9)


def test_isfa_without_a_score_is_refused() -> None:
    with pytest.raises(ValueError, match="reliability score and got none"):
        load_strategy(StrategyConfig(name="isfa")).weight(10, None)


def test_each_strategy_asks_its_clients_only_for_what_it_needs() -> None:
    config = {"mu": 0.3, "alpha": 0.7}
    asked = {
        name: (strategy.proximal, strategy.score_alpha)
        for name in ("fedavg", "fedprox", "isfa")
        for strategy in [load_strategy(StrategyConfig(name=name, **config))]
    }
    assert asked == {"fedavg": (0.0, None), "fedprox": (0.3, None), "isfa": (0.0, 0.7)}


def test_an_unknown_strategy_is_named_with_the_known_ones() -> None:
    assert available() == ["fedavg", "fedprox", "isfa", "uniform"]
    with pytest.raises(ConfigError) as caught:
        load_strategy(StrategyConfig(name="fedsgd"))
    assert str(caught.value) == "strategy.name is 'fedsgd'; known strategies: fedavg, fedprox, isfa, uniform"
