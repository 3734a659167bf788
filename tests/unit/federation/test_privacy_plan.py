"""From a budget to noise: the smallest that either way of counting allows, and sums over no more than there are."""

import pytest

from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import ConfigError
from fedtalk_ray.federation import privacy_plan
from fedtalk_ray.federation.privacy_plan import PrivacyPlan, with_noise


def test_one_way_of_counting_that_cannot_be_met_does_not_hide_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """B14: of the two ways to the release view's epsilon, one that raised ended the search."""
    found = {1.0: 3.0, 0.25: 2.0}

    def one_fails(rate_that_fails: float):
        def multiplier(target: float, delta: float, *, rate: float, count: int, make: object) -> float:
            if rate == rate_that_fails:
                raise ValueError("no noise is enough")
            return found[rate]

        return multiplier

    plan = PrivacyPlan("skellam", 1e-5, 0.25, 40, 10)
    for fails, left in ((1.0, 2.0), (0.25, 3.0)):
        monkeypatch.setattr(privacy_plan, "noise_multiplier", one_fails(fails))
        assert plan.multiplier(8.0, "release") == left
    with pytest.raises(ConfigError, match=r"privacy\.epsilon: no noise is enough"):
        monkeypatch.setattr(privacy_plan, "noise_multiplier", one_fails(1.0))
        plan.multiplier(8.0, "server")


def test_a_refused_epsilon_of_a_simulated_cohort_says_so() -> None:
    noise = {"mechanism": "gaussian", "noise_multiplier": 0.5, "clip_norm": 1.0, "epsilon": 1.0}
    tree = {"run": "r", "shards": "s", "pretrained": "p", "phases": ["faces"]}
    simulated = {"simulated_cohort": 200, "simulated_population": 2000}
    for privacy, says in ((noise, False), (noise | simulated, True)):
        with pytest.raises(ConfigError, match="spends epsilon") as refused:
            with_noise(parse_config(tree | {"privacy": privacy}, "t"), 64)
        assert ("SIMULATION: the noise is that of a cohort of 200 out of 2000" in str(refused.value)) == says


def test_a_cohort_larger_than_the_population_is_all_of_it() -> None:
    """Sums are divided by its size."""
    noise = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0}
    tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": 16}}
    assert with_noise(parse_config(tree | {"privacy": noise}, "t"), 9).cohort.size == 9
    assert with_noise(parse_config(tree, "t"), 9).cohort.size == 16
    # What stands out of the noise of a large cohort drowns in that of all there are.
    many = tree | {"privacy": noise, "phases": ["units", "faces"], "cohort": {"size": 1000}}
    assert with_noise(parse_config(many, "t"), 2000).cohort.size == 1000
    with pytest.raises(ConfigError, match="the statistics of units drown in a privacy"):
        with_noise(parse_config(many, "t"), 20)
    adaptive = tree | {"privacy": noise | {"clipping": "adaptive"}, "cohort": {"size": 64}}
    assert with_noise(parse_config(adaptive, "t"), 64).cohort.size == 64
    with pytest.raises(ConfigError, match=r"adaptive needs a cohort of 64, or .*, and the shards hold 63"):
        with_noise(parse_config(adaptive, "t"), 63)
