"""One typed tree of settings: read from YAML, overridden by key=value, checked at the door.

`load_config(path, ["rounds=5", "local.steps=10"])` gives a `TrainConfig`. Unknown keys are refused with the nearest
valid one named. Every field is documented where it is declared.
"""

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from fedtalk_ray.errors import ConfigError
from fedtalk_ray.settings import (
    AdapterConfig,
    CohortConfig,
    EvaluationConfig,
    FailureConfig,
    LocalConfig,
    LossConfig,
    PopulationConfig,
    PrivacyConfig,
    Section,
    ServerConfig,
    SlotConfig,
    StrategyConfig,
    StreamConfig,
)


class TrainConfig(Section):
    """Everything `fedtalk train` needs."""

    run: str
    """Output folder; its last part names the run."""
    shards: str
    """Folder written by `fedtalk prepare`."""
    pretrained: str | None = None
    """Folder written by `fedtalk pretrain`; null starts from random weights (only with `shared: backbone`)."""
    seed: int = Field(0, ge=0)
    """Every random choice derives from it."""
    rounds: int = Field(10, ge=1)
    """Rounds in all, those before a resume included."""
    shared: Literal["adapter", "backbone"] = "adapter"
    """What is federated. adapter: a LoRA adapter on the frozen backbone. backbone: all of the denoiser's weights."""
    aggregation: Literal["secure", "plain"] = "secure"
    """secure: the server learns the sum over at least 8 clients and nothing of any one. plain: it sees each slot's
    weighted sum in the clear, and clients report scores and sample counts; it is no privacy mechanism."""
    lora_aggregation: Literal["ab", "ffa"] | None = None
    """What of the shared adapter is trained and summed. ab: both LoRA factors; averages of A and of B apart are not the
    average of BA. ffa: only B, on an A frozen from the run's seed (Sun et al. 2024): exact, half the vector, and noise
    stays linear. null: ffa with noise, else ab."""
    population: PopulationConfig = PopulationConfig()
    cohort: CohortConfig = CohortConfig()
    strategy: StrategyConfig = StrategyConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    server: ServerConfig = ServerConfig()
    local: LocalConfig = LocalConfig()
    adapter: AdapterConfig = AdapterConfig()
    slots: SlotConfig = SlotConfig()
    stream: StreamConfig = StreamConfig()
    failures: FailureConfig = FailureConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    address: str = "default"
    """Ray cluster. "local" starts one for this run; "auto" or host:port joins one; "default" joins the one that
    RAY_ADDRESS names (a submitted job finds its cluster there) and starts one where nothing is named."""
    debug: bool = False
    """Slots that meet `breakpoint()` or an exception wait for `ray debug`, what they print is shown, and the dashboard
    draws stack traces and flame graphs (docs/debugging.md). Whoever reaches the node can then enter a client's process:
    for trials only."""

    @model_validator(mode="after")
    def _needs_a_backbone(self) -> "TrainConfig":
        if self.shared == "adapter" and self.pretrained is None:
            raise ValueError("shared: adapter needs `pretrained` (the folder that `fedtalk pretrain` wrote)")
        return self

    @model_validator(mode="after")
    def _can_be_private(self) -> "TrainConfig":
        privacy = self.privacy
        if self.aggregation == "secure":
            if self.pretrained is None:
                raise ValueError(
                    "aggregation: secure needs `pretrained`: without it clients would send statistics of their latents "
                    "in the clear (aggregation: plain does)"
                )
            floor = privacy.insecure_min_survivors or 8
            if self.cohort.size < floor:
                raise ValueError(
                    f"aggregation: secure opens no sum of fewer than {floor} clients, and cohort.size is "
                    f"{self.cohort.size}; raise it, or for a trial set privacy.insecure_min_survivors or "
                    "aggregation: plain"
                )
        elif privacy.mechanism == "skellam":
            raise ValueError(
                "privacy.mechanism skellam hides no single update from a server that sums in the clear; "
                "use aggregation: secure, or mechanism gaussian with a trusted server"
            )
        if privacy.clipping == "adaptive" and (privacy.simulated_cohort or self.cohort.size) < 64:
            raise ValueError("privacy.clipping adaptive needs a cohort of 64 or more; smaller ones drown in its noise")
        if privacy.clipping == "adaptive" and self.aggregation == "plain":
            raise ValueError("privacy.clipping adaptive needs aggregation: secure, whose sum counts who was clipped")
        unamplified = self.cohort.sampling not in (None, "poisson")
        if privacy.mechanism != "none" and unamplified and privacy.view == "release":
            raise ValueError(
                "privacy.view release counts on cohort.sampling poisson; leave it out, or hold view server"
            )
        return self

    @model_validator(mode="after")
    def _can_be_drawn(self) -> "TrainConfig":
        cohort = self.cohort
        if cohort.sampling in ("size", "reliable") and self.aggregation == "secure":
            what = "sample counts" if cohort.sampling == "size" else "scores"
            raise ValueError(
                f"cohort.sampling {cohort.sampling} looks at clients' {what}, which aggregation: secure hides; use "
                "uniform or balanced, or aggregation: plain"
            )
        if self.privacy.mechanism != "none" and (cohort.over_select or self.failures.deadline_s or cohort.trace):
            raise ValueError(
                "cohort.over_select, cohort.trace and failures.deadline_s let the fast and the present in more often "
                "than the account of epsilon knows; leave them out with a privacy.mechanism"
            )
        return self

    @model_validator(mode="after")
    def _can_grow(self) -> "TrainConfig":
        slots = self.slots
        if slots.at_least is not None:
            if slots.at_least > slots.count:
                raise ValueError(f"slots.at_least {slots.at_least} is more than slots.count {slots.count}")
            if not (slots.num_gpus or slots.num_cpus or slots.memory_mb):
                raise ValueError(
                    "slots.at_least needs slots.num_gpus, slots.num_cpus or slots.memory_mb: a slot that reserves "
                    "nothing makes no cluster grow"
                )
        return self

    @property
    def in_the_clear(self) -> bool:
        """Whether nothing is promised to clients: then they may tell their own losses, scores and sample counts."""
        return self.aggregation == "plain" and self.privacy.mechanism == "none"

    @property
    def poisson(self) -> bool:
        """Whether cohorts are Poisson samples."""
        chosen = self.cohort.sampling or ("uniform" if self.privacy.mechanism == "none" else "poisson")
        return chosen == "poisson"

    @property
    def trained_factors(self) -> str:
        """ "ab" or "ffa" (`lora_aggregation`)."""
        return self.lora_aggregation or ("ab" if self.privacy.mechanism == "none" else "ffa")


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """The configuration in a YAML file with `key=value` overrides (dots reach inside; values are YAML).

    Raises `ConfigError`, one line, for an unreadable file, an unknown key, or a value out of range.
    """
    tree = load_tree(Path(path))
    for override in overrides or []:
        _override(tree, override)
    return parse_config(tree, str(path))


def load_tree(path: Path) -> dict[str, Any]:
    """The `key: value` lines of a YAML file as plain data. Raises `ConfigError`, one line, for anything else."""
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration {path} is not YAML: it is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration {path} must hold `key: value` lines, not {type(tree).__name__}")
    return tree


def parse_config(tree: dict[str, Any], source: str) -> TrainConfig:
    """A checked `TrainConfig` from plain data; `source` names it in errors."""
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_explain(problem) for problem in error.errors())) from error


def parse_loss(weights: list[str]) -> LossConfig:
    """Loss settings from `key=value` texts, the others as they are declared."""
    tree: dict[str, Any] = {}
    for weight in weights:
        _override(tree, weight)
    try:
        return LossConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("loss: " + "; ".join(_explain(problem, LossConfig) for problem in error.errors())) from error


def save_config(config: TrainConfig, path: Path) -> None:
    """The resolved configuration as YAML, readable by `load_config`."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value, for example rounds=5")
    *sections, last = key.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {section} is a value, not a section")
        tree = inner
    try:
        tree[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from error


def _explain(problem: Any, section: type[BaseModel] = TrainConfig) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        for part in problem["loc"][:-1]:
            section = type(section.model_fields[part].default)
        near = difflib.get_close_matches(str(problem["loc"][-1]), section.model_fields, n=1, cutoff=0.0)
        return f"unknown key {where!r}; the nearest valid key is {near[0]!r}"
    if problem["type"] == "missing":
        return f"key {where!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where} is {problem['input']!r}: {message}" if where else message
