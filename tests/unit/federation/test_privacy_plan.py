"""From a budget to noise: the smallest that either way of counting allows, and sums over no more than there are."""

import pytest

from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import ConfigError
from fedtalk_ray.federation.privacy_plan import with_noise


def test_a_cohort_larger_than_the_population_is_all_of_it() -> None:
    """Sums are divided by its size."""
    noise = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0}
    tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": 16}}
    assert with_noise(parse_config(tree | {"privacy": noise}, "t"), 9).cohort.size == 9
    assert with_noise(parse_config(tree, "t"), 9).cohort.size == 16
    with pytest.raises(ConfigError, match="spends epsilon"):
        with_noise(parse_config(tree | {"privacy": noise | {"noise_multiplier": 0.5, "epsilon": 1.0}}, "t"), 64)
    many = tree | {"privacy": noise, "phases": ["units", "faces"], "cohort": {"size": 1000}}
    assert with_noise(parse_config(many, "t"), 2000).cohort.size == 1000
    with pytest.raises(ConfigError, match="the statistics of units drown in a privacy"):
        with_noise(parse_config(many, "t"), 20)
    adaptive = tree | {"privacy": noise | {"clipping": "adaptive"}, "cohort": {"size": 64}}
    assert with_noise(parse_config(adaptive, "t"), 64).cohort.size == 64
    with pytest.raises(ConfigError, match=r"adaptive needs a cohort of 64, or .*, and the shards hold 63"):
        with_noise(parse_config(adaptive, "t"), 63)
