"""What a site agrees to, in a file of its own that no coordinator overrides."""

import time
from pathlib import Path

from pydantic import Field, field_validator

from fedtalk_ray.config import parse, read_yaml
from fedtalk_ray.federation.secure_aggregator import limits_of
from fedtalk_ray.outputs import write_synced
from fedtalk_ray.recipe import Section
from fedtalk_ray.runs.checkpoints import config_digest
from fedtalk_ray.settings import AgreementConfig, TrainConfig


class Policy(Section):
    """The file that `fedtalk join --policy` names."""

    fewest_survivors: int = Field(8, ge=2)
    """Sums of fewer clients are not taken part in."""
    epsilon: float | None = Field(None, gt=0)
    """Most epsilon over all runs, as the coordinator sees it; then no run without noise is taken part in. null: any."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Of that epsilon."""
    colluders: int = Field(1, ge=0)
    """With `epsilon`: members at least that may know or leave out their part of the noise, in league with the
    coordinator, without weakening it (`privacy.colluders`)."""
    rounds: int | None = Field(None, ge=1)
    """Most rounds over all runs. null: any number."""
    runs: int | None = Field(1, ge=1)
    """Runs that are taken part in. From two runs over the same clips, with one site more in one of them, the difference
    is that site's. null: any number."""
    most_download_mb: int = Field(4096, ge=1)
    """MiB of a model that is fetched."""
    configurations: list[str] | None = None
    """Runs with these settings alone, by what `fedtalk join` prints of each. null: any."""
    models: list[str] | None = None
    """Runs that start from these models alone: "fedtalk-tiny", or what `fedtalk join` prints. null: any."""
    hours: str | None = None
    """When to train, by this machine's clock, as in "22-6". null: at any hour."""

    @field_validator("hours")
    @classmethod
    def _are_hours(cls, value: str | None) -> str | None:
        if value is not None:
            parts = value.split("-")
            if len(parts) != 2 or not all(part.isdecimal() and int(part) <= 24 for part in parts):
                raise ValueError(f"hours {value!r}: two full hours, as in 22-6")
        return value

    def refusal(self, config: TrainConfig, model: str) -> str:
        """Why a run is not taken part in; empty where it is. model: what it starts from, as `models` names it."""
        if config.aggregation != "secure":
            return "aggregation is not secure"
        floor = limits_of(config.privacy).floor
        if floor < self.fewest_survivors:
            return f"fewest survivors is {floor}, this site asks for {self.fewest_survivors}"
        name = configuration_name(config)
        if self.configurations is not None and name not in self.configurations:
            return f"configuration {name} is none that this site agreed to"
        if self.models is not None and model not in self.models:
            return f"model {model} is none that this site agreed to"
        if self.epsilon is not None:
            # Noise that the coordinator adds is its word.
            if config.privacy.mechanism != "skellam":
                return f"no noise of the sites' own, and this site agreed to epsilon {self.epsilon:g} over all runs"
            if config.privacy.colluders < self.colluders:
                return f"colluders is {config.privacy.colluders}, this site asks for {self.colluders}"
        return ""

    def at_this_hour(self, hour: int | None = None) -> bool:
        """Whether `hours` let it train now. hour: of the day, 0 to 23; None for this machine's clock."""
        if self.hours is None:
            return True
        first, last = (int(part) % 24 for part in self.hours.split("-"))
        hour = time.localtime().tm_hour if hour is None else hour
        return first <= hour < last if first < last else hour >= first or hour < last

    def agreement(self, ledgers: Path) -> AgreementConfig:
        """What its ledger, kept in that folder over all runs, is held to."""
        return AgreementConfig(ledgers=str(ledgers), epsilon=self.epsilon, delta=self.delta, rounds=self.rounds)


def load_policy(path: Path | None) -> Policy:
    """The policy in a YAML file; without one, the defaults. Raises `ConfigError`."""
    return Policy() if path is None else parse(Policy, read_yaml(path, "policy"), str(path))


def keep_policy(path: Path | None, kept: Path) -> Policy:
    """The policy in a file, which is copied to where a later start finds it; without one, the one found there, or the
    defaults. Raises `ConfigError`."""
    policy = load_policy(path if path is not None else kept if kept.exists() else None)
    if path is not None:
        write_synced(kept, path.read_bytes())
    return policy


def configuration_name(config: TrainConfig) -> str:
    """What stands for a run's settings in a policy: the first 32 digits of the hash that plans name."""
    return config_digest(config).hex()[:32]
