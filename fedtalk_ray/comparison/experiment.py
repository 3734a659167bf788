"""What `fedtalk compare` compares: methods x seeds, on one or more populations, read from one YAML file."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from fedtalk_ray.config import assignment, parse, parse_config, read_yaml, set_key
from fedtalk_ray.errors import ConfigError
from fedtalk_ray.evaluation.evaluate import OTHER_SOUND, ROWS
from fedtalk_ray.evaluation.window_figures import GROUPS, MEASURES
from fedtalk_ray.recipe import Section
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import population_of
from fedtalk_ray.shards.unreliable import unreliable_clients

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Names a folder."""

Settings = dict[str, Any] | list[str]
"""Settings of `TrainConfig`: {strategy.name: isfa, local: {steps: 3}}, or ["strategy.name=isfa", "local.steps=3"]."""

TRAINING_METRIC = "held_out_loss"


class Population(Section):
    """Whom the methods train on. Settings of a method win over those of its population."""

    settings: Settings = Field({})
    """Settings of every run on it, such as {shards: shards/k100}."""
    participation: float | None = Field(None, gt=0, le=1)
    """Share of the clients that take part in each round; sets cohort.size."""
    evaluation_shards: str | None = None
    """As in the experiment, for this population alone."""


class WonBackMethods(Section):
    """Three methods: how much of what `harmed` loses against `clean` does `rescued` win back?"""

    clean: str
    harmed: str
    rescued: str


class Experiment(Section):
    """Everything `fedtalk compare` needs. In any text of a setting `{seed}` stands for the run's seed."""

    name: Name
    """Titles tables and plots."""
    out: str
    """Output folder; a folder that holds some of the runs already is gone on with."""
    base: str | dict[str, Any]
    """Settings that all runs share: a configuration of `fedtalk train`, or its keys. `run` and `seed` are set here."""
    methods: dict[Name, Settings] = Field(min_length=1)
    """What is compared: name -> settings over the base."""
    models: dict[Name, str | None] = Field({})
    """What is measured as it is beside the methods: name -> a run's folder or what `pretrained` may name; null: what
    the runs' `pretrained` names. The same figures stand for every seed; methods may be compared with it as with one
    another."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0, 1, 2], min_length=1)
    """Each method runs once per seed, on each population; the same seeds make pairs."""
    metrics: list[str] = Field(["unseen.loss", "seen.loss", "unseen.motion_error", "seen.motion_error"], min_length=1)
    """Columns of the table; the first is the main one.
    <seen|unseen>.<loss|motion_error|mouth_agreement|psnr|mouth_psnr|jitter_ratio>: on windows of test clips, for which
    a model must hear by the shards' features.
    <seen|unseen>.<row>.<figure>, as in unseen.generated.mouth_psnr: on videos of them, as `fedtalk evaluate` measures
    them (slower; not measured when no such column is named). Clients whom a run of the pair had corrupted count in
    neither. held_out_loss: the last round's, on the clients' own val clips, corrupted ones included."""
    baseline: str | None = None
    """The method that paired differences are taken to; null takes the first."""
    populations: dict[Name, Population] = Field({"all": Population()}, min_length=1)
    """Name -> population."""
    evaluation_shards: str | None = None
    """Where test clips come from: clean shards, with the same people; null takes each run's own shards."""
    personal: bool = False
    """Clients speak with their own identity adapters; otherwise only what was federated is measured."""
    exclude: list[str] = Field([])
    """Identities that do not count in what is measured, as those by whom settings were chosen."""
    clips: int | None = Field(None, ge=2)
    """At most so many videos a group, of as many people as possible; null makes all. Windows are of all clips."""
    judge: str | None = None
    """Folder of an ONNX identity judge; adds the figure `identity` to videos."""
    won_back: WonBackMethods | None = None
    """Adds the share of the harm that one method wins back."""

    @model_validator(mode="after")
    def _names_fit(self) -> "Experiment":
        named = [self.baseline] if self.baseline else []
        named += list(self.won_back.model_dump().values()) if self.won_back else []
        for name in named:
            if name not in self.methods and name not in self.models:
                known = ", ".join([*self.methods, *self.models])
                raise ValueError(f"{name!r} is no method; there are {known}")
        if twice := sorted(set(self.methods) & set(self.models)):
            raise ValueError(f"{twice[0]!r} is a method and a model; give one another name")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} name one twice")
        for metric in self.metrics:
            parts = metric.split(".")
            windows = len(parts) == 2 and parts[0] in GROUPS and parts[1] in MEASURES
            videos = len(parts) == 3 and parts[0] in GROUPS
            if not (windows or videos or metric == TRAINING_METRIC):
                raise ValueError(
                    f"metric {metric!r} is unknown; give {TRAINING_METRIC}, <seen|unseen>.<{'|'.join(MEASURES)}> or "
                    "<seen|unseen>.<row>.<figure>, as in unseen.generated.mouth_psnr"
                )
        return self

    def windows(self) -> bool:
        """Whether a metric is of the shards' own windows, for which a model must hear as they do."""
        return any(metric.count(".") == 1 for metric in self.metrics)

    def videos(self) -> bool:
        """Whether a metric needs generated videos."""
        return bool(self.video_figures())

    def video_figures(self) -> set[str]:
        """The figures of videos that metrics name."""
        return {metric.split(".")[2] for metric in self.metrics if metric.count(".") == 2}

    def video_rows(self) -> tuple[str, ...]:
        """The rows of videos that the metrics look at or that figures of theirs compare with, in their order."""
        named = {metric.split(".")[1] for metric in self.metrics if metric.count(".") == 2}
        if "lip_gap" in self.video_figures():
            named.add(OTHER_SOUND)
        return tuple(row for row in ROWS if row in named)


@dataclass(frozen=True)
class Planned:
    """One run. excluded: who does not count, by `exclude` or because a run of its pair had her clips corrupted."""

    population: str
    method: str
    seed: int
    config: TrainConfig
    evaluation_shards: str
    excluded: tuple[str, ...]

    def label(self) -> str:
        return f"{self.population}/{self.method}/seed{self.seed}"


def load_experiment(path: str | Path, out: str | None = None) -> Experiment:
    """The experiment in a YAML file. `out` replaces its output folder. Raises `ConfigError`, one line."""
    tree = read_yaml(path, "experiment")
    return parse(Experiment, tree if out is None else tree | {"out": out}, f"experiment {path}")


def plan(experiment: Experiment, settings: list[str] | None = None) -> list[Planned]:
    """All runs: seed after seed, so that a comparison that was cut short has whole pairs.

    settings: `key=value` over the base, under populations and methods. Every configuration is checked here, before
    anything runs. Raises `ConfigError`, and `ShardError` for shards that do not exist.
    """
    configs = {
        (seed, population, method): _config(experiment, settings or [], population, method, seed)
        for seed in experiment.seeds
        for population in experiment.populations
        for method in experiment.methods
    }
    corrupted = {shards: set(unreliable_clients(shards)) for shards in {config.shards for config in configs.values()}}
    runs = []
    for (seed, population, method), config in configs.items():
        clean = experiment.populations[population].evaluation_shards or experiment.evaluation_shards or config.shards
        clean = clean.replace("{seed}", str(seed))
        known = load_manifest(clean).identities
        for name in experiment.exclude:
            if name not in known:
                raise ConfigError(f"experiment {experiment.name}: exclude names {name!r}, who is not in {clean}")
        pair = [configs[seed, population, other].shards for other in experiment.methods]
        excluded = set(experiment.exclude).union(*(corrupted[shards] for shards in pair))
        runs.append(Planned(population, method, seed, config, clean, tuple(sorted(excluded))))
    return runs


def _config(experiment: Experiment, settings: list[str], population: str, method: str, seed: int) -> TrainConfig:
    where = f"experiment {experiment.name}, {population}/{method}"
    tree = copy.deepcopy(experiment.base) if isinstance(experiment.base, dict) else read_yaml(experiment.base)
    chosen = experiment.populations[population]
    for part in (settings, chosen.settings, experiment.methods[method]):
        pairs = part if isinstance(part, list) else _flat(part)
        for key, value in (assignment(each, f"{where}:") if isinstance(each, str) else each for each in pairs):
            if key in ("run", "seed"):
                raise ConfigError(f"{where}: {key!r} cannot be set; runs lie in `out`, and seeds are the experiment's")
            set_key(tree, key, value, f"{where}:")
    tree |= {"run": str(Path(experiment.out) / "runs" / population / method / f"seed{seed}"), "seed": seed}
    config = parse_config(_with_seed(tree, seed), where)
    clients = len(population_of(config, load_manifest(config.shards)))
    if chosen.participation is not None:
        size = max(1, round(chosen.participation * clients))
        config = config.model_copy(update={"cohort": config.cohort.model_copy(update={"size": size})})
    return config


def _flat(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _with_seed(value: Any, seed: int) -> Any:
    if isinstance(value, dict):
        return {key: _with_seed(inner, seed) for key, inner in value.items()}
    return value.replace("{seed}", str(seed)) if isinstance(value, str) else value
