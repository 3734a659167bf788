"""What a site agrees to, and that a file which says something else is one clear line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedtalk_ray.errors import ConfigError
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.sites.policy import Policy, configuration_name, load_policy

SECURE: dict[str, Any] = {"aggregation": "secure", "cohort": {"size": 8}, "privacy": {}}
NOISE = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0, "view": "server"}


@pytest.mark.parametrize(
    ("policy", "changes", "said"),
    [
        ({}, {}, ""),
        ({}, {"aggregation": "plain"}, "aggregation is not secure"),
        ({}, {"privacy": {"insecure_min_survivors": 2}}, "fewest survivors is 2, this site asks for 8"),
        ({"fewest_survivors": 16}, {}, "fewest survivors is 8, this site asks for 16"),
        ({"models": ["fedtalk-tiny"]}, {}, "model 0123 is none that this site agreed to"),
        ({"configurations": ["0" * 32]}, {}, "is none that this site agreed to"),
        ({"epsilon": 8.0}, {}, "no noise of the sites' own, and this site agreed to epsilon 8"),
        ({"epsilon": 8.0}, {"privacy": NOISE | {"mechanism": "gaussian"}}, "no noise of the sites' own"),
        ({"epsilon": 8.0}, {"privacy": NOISE | {"colluders": 0}}, "colluders is 0, this site asks for 1"),
    ],
)
def test_what_goes_beyond_it_is_refused(
    make_config: Callable[..., TrainConfig], policy: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    refusal = Policy(**policy).refusal(make_config(**SECURE | changes), "0123")
    assert said in refusal and bool(said) == bool(refusal)


def test_a_run_with_noise_and_a_known_configuration_passes(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(**SECURE | {"privacy": NOISE})
    agreed = Policy(epsilon=8.0, configurations=[configuration_name(config)], models=["0123"])
    assert agreed.refusal(config, "0123") == ""
    # The name follows what changes a round, and not where somebody's clips lie.
    assert configuration_name(config.model_copy(update={"shards": "elsewhere"})) == configuration_name(config)
    assert configuration_name(config.model_copy(update={"seed": 7})) != configuration_name(config)


def test_what_its_ledger_is_held_to(tmp_path: Path) -> None:
    assert load_policy(None) == Policy()
    agreement = Policy(epsilon=8.0, rounds=5, delta=1e-6).agreement(tmp_path)
    assert (agreement.epsilon, agreement.rounds, agreement.delta) == (8.0, 5, 1e-6)
    assert agreement.ledgers == str(tmp_path)


@pytest.mark.parametrize(
    ("hours", "open_at"),
    [
        (None, set(range(24))),
        ("22-6", {22, 23, 0, 1, 2, 3, 4, 5}),
        ("9-17", set(range(9, 17))),
        ("20-24", {20, 21, 22, 23}),
    ],
)
def test_hours(hours: str | None, open_at: set[int]) -> None:
    policy = Policy(hours=hours)
    assert {hour for hour in range(24) if policy.at_this_hour(hour)} == open_at


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epsilonn: 8\n", "unknown key 'epsilonn'"),
        ("fewest_survivors: 1\n", "fewest_survivors"),
        ("hours: evening\n", "two full hours, as in 22-6"),
        ("- 1\n", "must hold `key: value` lines"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_a_wrong_policy_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)) as refused:
        load_policy(path)
    assert said in str(refused.value)
    with pytest.raises(ConfigError, match=r"policy .* cannot be read"):
        load_policy(tmp_path / "none.yaml")
