"""One typed tree of settings: read from YAML, overridden by key=value, checked at the door.

`load_config(path, ["rounds=5", "local.steps=10"])` gives a `TrainConfig`. Unknown keys are refused with the nearest
valid one named. Every field is documented where it is declared.
"""

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedtalk_ray.errors import ConfigError


class Section(BaseModel):
    """A part of the tree: immutable, no unknown keys, field docstrings become descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class LossConfig(Section):
    """Weights of the training loss; 0 switches a term off."""

    tdc: float = Field(0.25, ge=0)
    """Temporal-Denoising Consistency: error of frame differences (lambda_tdc in the paper)."""
    motion: float = Field(0.0, ge=0)
    """Squared error of the motion that the sound alone suggests, against the frame's true residual on the reference.
    For a backbone that starts untrained (1 is good); pretraining has a part of its own for this, and taught further by
    pictures of a few faces, its lip shapes get worse."""
    identity: float = Field(0.0, ge=0)
    """1 - cosine similarity of identity embeddings, generated against true frame."""
    perceptual: float = Field(0.0, ge=0)
    """Distance of the identity encoder's inner features, generated against true frame."""
    sync: float = Field(0.0, ge=0)
    """How little a sync network believes that the predicted lips speak the sound (`model.sync.sync_loss`)."""
    mouth_weight: float = Field(5.0, ge=1)
    """How much more the mouth region counts in the diffusion and TDC terms than the rest of the face."""
    noise_bias: float = Field(4.0, ge=1)
    """Timesteps are drawn as T * (1 - u^bias), u uniform: 1 is uniform, more dwells on noisy steps, where motion must
    come from the sound. On GRID after 4 CPU minutes lip correlation on unseen speakers was 0.41 at 2 and 0.55 at 4."""
    speech_dropout: float = Field(0.1, ge=0, le=1)
    """Share of windows trained without sound, so that generation can be guided by sound (classifier-free)."""


class LocalConfig(Section):
    """One client's work in one round."""

    steps: int = Field(20, ge=1)
    """Optimiser steps on the shared parameters."""
    batch_size: int = Field(4, ge=1)
    """Windows per step (per accumulation micro-step)."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches whose gradients are summed before each step: more windows per step in the same memory."""
    learning_rate: float = Field(1e-3, gt=0)
    """AdamW's, constant within a round; the optimiser's state does not outlive the round."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    autocast: bool = True
    """bf16 where the device has it natively (recent GPUs); no effect on CPUs."""
    identity_steps: int = Field(5, ge=0)
    """Steps on the client's own identity adapter, after the shared ones and with those frozen; it never leaves the
    client."""
    score_windows: int = Field(12, ge=2)
    """Held-out windows that a client generates to score itself (IDSim, TempStab)."""
    loss: LossConfig = LossConfig()


class AdapterConfig(Section):
    """The LoRA adapters (PEFT): `shared` is federated, `identity` stays with its client."""

    rank: int = Field(8, ge=1)
    """Of `shared`: more can be learned, more is sent."""
    alpha: float = Field(16.0, gt=0)
    """LoRA's scale is alpha / rank."""
    identity_rank: int = Field(4, ge=1)
    """Of `identity`; its alpha is twice this."""


class StrategyConfig(Section):
    """How client updates are weighted and what each client minimises."""

    name: str = "isfa"
    """fedavg: w_k ~ n_k. fedprox: fedavg with a proximal term. isfa: w_k ~ n_k exp(gamma s_k).
    A file in `fedtalk_ray/federation/strategies` adds one under its own name."""
    gamma: float = Field(8.0, ge=0)
    """ISFA: how strongly the reliability score bends the weights; 0 is fedavg. At 8 a client that fails one of the two
    scores counts a fiftieth of one that passes both."""
    alpha: float = Field(0.5, ge=0, le=1)
    """ISFA: s = alpha * IDSim + (1 - alpha) * TempStab."""
    mu: float = Field(0.01, ge=0)
    """FedProx: weight of mu / 2 * ||theta - theta_round||^2 in the client's loss."""


class ServerConfig(Section):
    """The server optimiser, which takes the averaged update as a gradient (Reddi et al. 2021)."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd with or without momentum, or adam (FedAdam)."""
    learning_rate: float = Field(1.0, gt=0)
    """1 with sgd and no momentum is plain averaging."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """sgd: heavy-ball momentum. adam: beta 1."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """adam only."""
    epsilon: float = Field(1e-3, gt=0)
    """adam only: the adaptivity tau of FedAdam."""


class CohortConfig(Section):
    """Who takes part in a round."""

    size: int = Field(16, ge=1)
    """Clients per round; all of them when there are not more. With `poisson`, the number expected."""
    sampling: Literal["uniform", "poisson"] | None = None
    """uniform: without replacement. poisson: everybody by a coin of their own, from the system's randomness, which is
    what amplifies privacy. null: poisson with noise (`privacy.mechanism`), else uniform."""
    clients: list[str] | None = None
    """The population by identity; null takes every identity of the shards that can be a client."""


class PrivacyConfig(Section):
    """Client-level differential privacy, and what secure aggregation has to know (docs/privacy.md)."""

    mechanism: Literal["none", "skellam", "gaussian"] = "none"
    """skellam: every client adds a part of the noise, nobody sees a sum without it. gaussian: the server adds it and
    must be trusted. none: no differential privacy, whatever the aggregation."""
    epsilon: float | None = Field(None, gt=0)
    """The budget: noise is chosen for it where `noise_multiplier` is null; no round that would overspend runs."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Should be well below 1 / clients."""
    noise_multiplier: float | None = Field(None, gt=0)
    """z: the noise's deviation over one client's largest effect. null: the smallest that keeps to `epsilon`."""
    view: Literal["release", "server"] = "release"
    """Whose epsilon is held to the budget: release, who sees the models and not the cohorts; server, who knows them."""
    participation_cap: int | None = Field(None, ge=1)
    """Rounds in which a client takes part at most. null: as often as it is drawn."""
    clip_norm: float | None = Field(None, gt=0)
    """C: bound on a client's weighted update. null: 10 without noise, where it is not meant to bind; set it with
    noise."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    """adaptive: C follows the median norm (Andrew et al. 2021), from a cohort of 64."""
    samples_cap: int = Field(10_000, ge=1)
    """n_max: training frames of a client that count at most."""
    weight_reference: float | None = Field(None, gt=0)
    """w_ref: weights are divided by it. null: `samples_cap`, so that none exceeds 1. With noise, at or below the median
    weight of the population."""
    mean_weight: float = Field(1.0, gt=0)
    """With noise: the public denominator, sum over survivors of this much each. It acts as a step size."""
    colluders: int = Field(0, ge=0)
    """skellam: clients that may add no noise without weakening the guarantee."""
    scale_bits: int | None = Field(None, ge=8, le=30)
    """Sums are counted in steps of 2^-bits. null: 18 with noise, else as fine as the cohort allows."""
    insecure_min_survivors: int | None = Field(None, ge=2)
    """Opens sums of fewer clients than 8. For trials: a sum of few says much about each. Insecure, and named so."""
    simulated_cohort: int | None = Field(None, ge=1)
    """Noise as a cohort of so many would have it relative to the mean, on a smaller real one. A simulation of utility:
    the real clients get less privacy than the printed figure."""
    simulated_population: int | None = Field(None, ge=1)
    """Whom the simulated cohort is drawn from."""

    @model_validator(mode="after")
    def _complete(self) -> "PrivacyConfig":
        if self.mechanism != "none":
            if self.epsilon is None and self.noise_multiplier is None:
                raise ValueError(f"mechanism {self.mechanism} needs `epsilon` or `noise_multiplier`")
            if self.clip_norm is None:
                raise ValueError(f"mechanism {self.mechanism} needs `clip_norm`, near a weighted update's usual norm")
        elif self.epsilon is not None or self.noise_multiplier is not None:
            raise ValueError("`epsilon` and `noise_multiplier` need a mechanism: skellam or gaussian")
        if (self.simulated_cohort is None) != (self.simulated_population is None):
            raise ValueError("`simulated_cohort` and `simulated_population` go together")
        if self.simulated_cohort and self.simulated_population and self.simulated_cohort > self.simulated_population:
            raise ValueError("`simulated_cohort` is larger than `simulated_population`")
        return self


class SlotConfig(Section):
    """Client slots: Ray actors that hold the model and work for one client after another."""

    count: int = Field(2, ge=1)
    """How many slots; results are bit-identical only for the same count (sums are added slot by slot)."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs per slot, whole or a fraction that divides one (0.25 puts four slots on a GPU)."""
    num_cpus: float = Field(0.0, ge=0)
    """CPUs that Ray reserves per slot. 0 leaves them to the readers of shards; a slot still computes on one thread."""
    threads: int = Field(1, ge=1)
    """Compute threads of one slot on a CPU; several slots beat several threads."""
    placement_timeout_s: float = Field(120.0, gt=0)
    """How long to wait until all slots are up, before saying what is missing."""


class StreamConfig(Section):
    """How slots read their clients' shards (Ray Data)."""

    memory_mb: int = Field(256, ge=16)
    """Budget of one slot's reader in the object store."""
    shuffle_windows: int = Field(64, ge=1)
    """Windows held to shuffle among."""


class EvaluationConfig(Section):
    """What is measured during training, on the clients' held-out (val) clips."""

    every: int = Field(1, ge=1)
    """Rounds between two evaluations of the held-out loss."""
    clients: int = Field(8, ge=1)
    """Clients that report a held-out loss: the first so many of the population, always the same."""
    windows: int = Field(4, ge=1)
    """Held-out windows per client, always the same ones with the same noise."""
    sample_every: int = Field(5, ge=1)
    """Rounds between two sample videos and contact sheets."""


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
    cohort: CohortConfig = CohortConfig()
    strategy: StrategyConfig = StrategyConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    server: ServerConfig = ServerConfig()
    local: LocalConfig = LocalConfig()
    adapter: AdapterConfig = AdapterConfig()
    slots: SlotConfig = SlotConfig()
    stream: StreamConfig = StreamConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    address: str = "default"
    """Ray cluster. "local" starts one for this run; "auto" or host:port joins one; "default" joins the one that
    RAY_ADDRESS names (a submitted job finds its cluster there) and starts one where nothing is named."""

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
        if privacy.mechanism != "none" and self.cohort.sampling == "uniform" and privacy.view == "release":
            raise ValueError(
                "privacy.view release counts on cohort.sampling poisson; leave it out, or hold view server"
            )
        return self

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
    path = Path(path)
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
    for override in overrides or []:
        _override(tree, override)
    return parse_config(tree, str(path))


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
