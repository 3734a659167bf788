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


def test_isfa_by_hand() -> None:
    """gamma 2: 100 e^1.6 = 495.30, 100 e^1 = 271.83, 200 e^0.4 = 298.36; sum 1065.49."""
    config = StrategyConfig(name="isfa", gamma=2.0)
    assert shares(config, [(100, 0.8), (100, 0.5), (200, 0.2)]) == pytest.approx([0.46486, 0.25512, 0.28002], abs=2e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(SAMPLES, SCORES), min_size=1, max_size=6), st.floats(0, 20))
def test_isfa_shares_are_n_exp_gamma_s_over_their_sum(clients: list[tuple[int, float]], gamma: float) -> None:
    terms = [samples * exp(gamma * score) for samples, score in clients]
    expected = [term / sum(terms) for term in terms]
    assert shares(StrategyConfig(name="isfa", gamma=gamma), clients) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(SAMPLES, SCORES), min_size=1, max_size=6))
def test_isfa_with_gamma_0_is_fedavg(clients: list[tuple[int, float]]) -> None:
    assert shares(StrategyConfig(name="isfa", gamma=0), clients) == shares(StrategyConfig(name="fedavg"), clients)


@settings(max_examples=50, deadline=None)
@given(SAMPLES, SCORES, SCORES, st.floats(0, 20))
def test_an_isfa_weight_grows_with_the_score_and_never_exceeds_the_sample_count(
    samples: int, score: float, other: float, gamma: float
) -> None:
    weight = load_strategy(StrategyConfig(name="isfa", gamma=gamma)).weight
    assert 0 < weight(samples, score) <= samples
    assert weight(samples, 1.0) == samples
    assert weight(samples, max(score, other)) >= weight(samples, min(score, other))


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


def test_a_new_strategy_is_one_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fedtalk_ray.federation.strategies as package

    (tmp_path / "equal.py").write_text(
        "class Equal:\n"
        "    proximal, score_alpha = 0.0, None\n"
        "    def weight(self, samples, score):\n"
        "        return 1.0\n"
        "def make(config):\n"
        "    return Equal()\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert shares(StrategyConfig(name="equal"), [(300, None), (100, None)]) == [0.5, 0.5]
