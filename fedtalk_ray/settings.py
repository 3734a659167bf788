"""Every setting of a run, documented where it is declared: `TrainConfig`, last here, and its sections.

What clients compute, phase by phase, is in `recipe`; who they are in `client_settings`; how slots run in
`slot_settings`.
"""

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fedtalk_ray.client_settings import CohortConfig, PopulationConfig
from fedtalk_ray.recipe import (
    LARGEST_STATISTICS,
    PHASES,
    STATISTICS_FROM,
    STATISTICS_NORM,
    STATISTICS_ROUNDS,
    AdapterConfig,
    CalibrationConfig,
    DecoderConfig,
    HearingConfig,
    IdentityConfig,
    LocalConfig,
    PhaseName,
    PhaseRounds,
    Section,
    SharpnessConfig,
    SpeechConfig,
    StrategyConfig,
    SyncConfig,
)
from fedtalk_ray.slot_settings import FailureConfig, SlotConfig, StreamConfig

ADAPTIVE_FROM = 64  # clients a round: the noise on the quantile that the clip norm follows is a twentieth of them


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
    average: int = Field(1, ge=1)
    """What is evaluated and exported is the mean of the shared parameters after the last so many rounds, while the
    rounds themselves go on from the last (Polyak and Juditsky 1992): what single rounds add by luck cancels out. The
    clients' identity adapters were trained beside the last. So many checkpoints are kept. 1: the last round alone."""


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
    """Rounds of all phases in which a client takes part at most. null: as often as it is drawn."""
    clip_norm: float | None = Field(None, gt=0)
    """C, the largest L2 norm of a client's update. With noise: required, applied after weighting. Secure without noise:
    applied before weighting; null takes what a round's optimiser steps can reach. Plain without noise: unused."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    """adaptive: C follows the median norm (Andrew et al. 2021), from a cohort of 64."""
    samples_cap: int = Field(10_000, ge=1)
    """n_max: training frames of a client that count at most."""
    weight_reference: float | None = Field(None, gt=0)
    """w_ref: weights are divided by it. null: `samples_cap`, so that none exceeds 1. With noise, at or below the median
    weight of the population."""
    most_weight: float | None = Field(4.0, gt=1)
    """Secure sums without noise: a client counts at most so many times as the last round's mean one. null: no bound."""
    mean_weight: float = Field(1.0, gt=0)
    """With noise: the public denominator is `cohort.size` times this, whoever took part. It acts as a step size."""
    colluders: int = Field(1, ge=0)
    """skellam: clients that may know or leave out their noise, in league with whoever sees the sum, without weakening
    the guarantee. 1 is a curious client by itself; k cost sqrt(m / (m - k)) more noise, m the fewest in a sum."""
    scale_bits: int | None = Field(None, ge=8, le=30)
    """Sums are counted in steps of 2^-bits. null: 18 with noise, else as fine as the cohort allows. Without noise an
    update's values are written yet finer, by as much as their number lets them be."""
    insecure_min_survivors: int | None = Field(None, ge=2)
    """Opens sums of fewer clients than 8. For trials: a sum of few says much about each. Insecure, and named so."""
    simulated_cohort: int | None = Field(None, ge=1)
    """Noise as in a cohort of so many, relative to the mean. A SIMULATION: the real clients get less privacy."""
    simulated_population: int | None = Field(None, ge=1)
    """Whom the simulated cohort is drawn from."""

    @property
    def hides_cohorts(self) -> bool:
        """Whether something is promised that holds only as long as nobody is told who, or how many, took part."""
        return self.mechanism != "none" and self.view == "release"

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


class AgreementConfig(Section):
    """What each client agrees to spend over all runs, which it checks itself before an update leaves; secure only."""

    ledgers: Annotated[str, AfterValidator(os.path.abspath)] | None = None
    """Folder that outlives runs, with a client's own files. null: each run counts by itself, in RUN.clients."""
    epsilon: float | None = Field(None, gt=0)
    """Most epsilon over all runs, as the server sees it; then no round without noise is answered. null: any."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Of that epsilon."""
    rounds: int | None = Field(None, ge=1)
    """Most rounds over all runs. null: any number."""


class EvaluationConfig(Section):
    """What is measured in the phase `faces`, on held-out clips; unseen people are those whom nobody trains on."""

    every: int = Field(1, ge=1)
    """Rounds of `faces` between two evaluations; its last round has one too."""
    clients: int = Field(8, ge=1)
    """People whose held-out loss is measured: always the same unseen people; clients only with `plain` and no noise."""
    windows: int = Field(4, ge=1)
    """Held-out windows per person, always the same ones with the same noise."""
    speakers: int = Field(0, ge=0)
    """Unseen people whose lips each evaluation compares with the truth. Costs about 2 s of computing per person."""
    sample_every: int = Field(5, ge=1)
    """Rounds of `faces` between two sample videos and contact sheets; the run's last round has them too."""


class TrainConfig(Section):
    """Everything `fedtalk train` needs."""

    run: str
    """Output folder; its last part names the run."""
    shards: str
    """Folder written by `fedtalk prepare`."""
    pretrained: str | None = None
    """`fedtalk-tiny`, a folder of `fedtalk pretrain`, or a hub id. null: random weights (`shared: backbone` only)."""
    seed: int = Field(0, ge=0)
    """All random choices derive from it but those of Poisson cohorts, groups, privacy noise and the secure protocol."""
    phases: list[PhaseName] = Field(["units", "speech", "faces", "calibration", "sharpness"])
    """What is taught, in the order of `recipe`. [faces] goes on from a `pretrained` that knows such people, and is
    what a run with noise does that names nothing. hearing takes the place of speech on shards whose sound features a
    pretrained encoder makes. sharpness is for shards of lower faces, decoder for those of whole ones (`--autoencoder
    patch`); identity and sync belong to a backbone from nothing."""
    rounds: int = Field(10, ge=1)
    """Rounds of the phase `faces`, those before a resume included."""
    speech: SpeechConfig = SpeechConfig()
    hearing: HearingConfig = HearingConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    decoder: DecoderConfig = DecoderConfig()
    identity: IdentityConfig = IdentityConfig()
    sync: SyncConfig = SyncConfig()
    sharpness: SharpnessConfig = SharpnessConfig()
    shared: Literal["adapter", "backbone"] = "adapter"
    """What is federated. adapter: a LoRA adapter on the frozen backbone. backbone: all of the denoiser's weights."""
    aggregation: Literal["secure", "plain"] = "secure"
    """secure: the server learns the sum over at least 8 clients and nothing of any one. plain: it sees each slot's
    weighted sum in the clear, and clients report scores and sample counts; it is no privacy mechanism."""
    lora_aggregation: Literal["ab", "ffa", "alternate", "svd"] | None = None
    """What of the shared adapter is trained and summed (`federation.lora_factors`). ab: both LoRA factors; averages of
    A and of B apart are not the average of BA. ffa: only B, on an A frozen from the run's seed: exact, half the vector,
    and noise stays linear. alternate: B and A in turn. svd: B, on an A that the server makes anew from every sum.
    null: ffa with noise, else ab."""
    population: PopulationConfig = PopulationConfig()
    cohort: CohortConfig = CohortConfig()
    strategy: StrategyConfig = StrategyConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    agreement: AgreementConfig = AgreementConfig()
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
    """Slots that meet `breakpoint()` or an exception wait for `ray debug`, their output is shown, the dashboard draws
    stack traces (docs/debugging.md). Whoever reaches the node can then enter a client's process: for trials only."""

    @model_validator(mode="before")
    @classmethod
    def _quiet_phases(cls, tree: Any) -> Any:
        """With noise the phases are [faces] where none are named: statistics of a few clients would drown in it."""
        if isinstance(tree, dict) and "phases" not in tree and isinstance(tree.get("privacy"), (dict, Section)):
            quiet = dict(tree["privacy"]).get("mechanism", "none") == "none"
            return tree if quiet else tree | {"phases": ["faces"]}
        return tree

    @model_validator(mode="after")
    def _needs_a_backbone(self) -> "TrainConfig":
        if self.shared == "adapter" and self.pretrained is None:
            raise ValueError("shared: adapter needs `pretrained`: fedtalk-tiny, a pipeline's folder, or a hub id")
        if "faces" not in self.phases:
            raise ValueError("phases: faces is missing, and nothing else makes a model that speaks")
        if self.phases != [name for name in PHASES if name in self.phases]:
            raise ValueError(f"phases: each runs once, in this order: {', '.join(PHASES)}")
        if "speech" in self.phases and "hearing" in self.phases:
            raise ValueError("phases: speech and hearing are two ways to learn what sounds say of lips; take one")
        if drowned := self.drowned_statistics:
            raise ValueError(drowned)
        if self.pretrained is None and "units" not in self.phases:
            raise ValueError("phases: a backbone that starts from random weights (pretrained: null) needs units")
        return self

    @model_validator(mode="after")
    def _can_be_factored(self) -> "TrainConfig":
        server = self.server
        if self.lora_aggregation and self.shared == "backbone":
            raise ValueError("lora_aggregation is of shared: adapter, and shared is backbone; leave it out")
        plain = server.optimizer == "sgd" and not server.momentum and server.average == 1
        if self.lora_aggregation == "svd" and not plain:
            raise ValueError(
                "lora_aggregation: svd turns the factors after every round, so that rounds cannot be averaged; leave "
                "out server.momentum, server.average and optimizer: adam"
            )
        return self

    @model_validator(mode="after")
    def _can_be_private(self) -> "TrainConfig":
        privacy, agreement = self.privacy, self.agreement
        if agreement.ledgers is None and (agreement.epsilon or agreement.rounds):
            raise ValueError("agreement: epsilon and rounds over all runs need `ledgers`, a folder that outlives runs")
        if agreement.ledgers and self.aggregation != "secure":
            raise ValueError("agreement.ledgers: clients keep one under aggregation: secure, and it is plain")
        if agreement.epsilon and privacy.simulated_cohort:
            raise ValueError("agreement.epsilon: noise that privacy.simulated_cohort makes too small cannot keep to it")
        if self.aggregation == "secure":
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
        if privacy.clipping == "adaptive" and (privacy.simulated_cohort or self.cohort.size) < ADAPTIVE_FROM:
            raise ValueError(f"privacy.clipping adaptive needs a cohort of {ADAPTIVE_FROM}, or it drowns in noise")
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
        if cohort.statistics and (cohort.over_select or cohort.trace):
            raise ValueError("cohort.statistics is not for cohorts with over_select or a trace; leave one of them out")
        if cohort.statistics and (self.privacy.mechanism != "none" or cohort.sampling == "poisson"):
            raise ValueError(
                f"cohort.statistics {cohort.statistics}: with a privacy.mechanism or sampling poisson all rounds are "
                "drawn alike, as the account counts them; leave it out"
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
    def plan(self) -> list[PhaseRounds]:
        """Which rounds of the run belong to which phase."""
        plan: list[PhaseRounds] = []
        for name in self.phases:
            rounds = self.rounds if name == "faces" else STATISTICS_ROUNDS.get(name) or getattr(self, name).rounds
            first = plan[-1].last + 1 if plan else 1
            plan.append(PhaseRounds(name, first, first + rounds - 1))
        return plan

    @property
    def all_rounds(self) -> int:
        """Rounds of all phases."""
        return self.plan[-1].last

    def phase_at(self, number: int) -> PhaseRounds:
        """The phase that a round belongs to."""
        return next(phase for phase in self.plan if number <= phase.last)

    def privacy_in(self, phase: PhaseName) -> PrivacyConfig:
        """`privacy` as it holds in a phase: each has a bound of its own on updates, and only `faces` adapts it."""
        if phase == "faces":
            return self.privacy
        norm: float | None = LARGEST_STATISTICS if self.privacy.mechanism == "none" else STATISTICS_NORM
        if phase not in STATISTICS_ROUNDS:
            norm = getattr(self, phase).clip_norm or self.privacy.clip_norm
        return self.privacy.model_copy(update={"clip_norm": norm, "clipping": "fixed"})

    @property
    def drowned_statistics(self) -> str:
        """Why statistics of so few clients a round cannot be told from noise; empty where they can."""
        phases = [name for name in self.phases if name in STATISTICS_ROUNDS]
        few = (self.privacy.simulated_cohort or self.cohort.size) < STATISTICS_FROM
        if self.privacy.mechanism == "none" or not phases or not few:
            return ""
        return (
            f"phases: the statistics of {' and '.join(phases)} drown in a privacy.mechanism's noise below "
            f"{STATISTICS_FROM} clients a round; leave them out, and begin with a `pretrained` that has them"
        )

    @property
    def statistics_count_alike(self) -> bool:
        """Whether weights are nothing in rounds of statistics: no round before says what a usual one is."""
        bounded = self.privacy.mechanism == "none" and self.privacy.most_weight is not None
        return self.aggregation == "secure" and bounded

    @property
    def in_the_clear(self) -> bool:
        """Whether nothing is promised to clients: then they may tell their own losses, scores and sample counts."""
        return self.aggregation == "plain" and self.privacy.mechanism == "none"

    @property
    def weight_bounds(self) -> PrivacyConfig | None:
        """The public bounds on a client's weight; None where nothing is promised (`strategies.client_weight`)."""
        return None if self.in_the_clear else self.privacy

    @property
    def poisson(self) -> bool:
        """Whether cohorts are Poisson samples."""
        chosen = self.cohort.sampling or ("uniform" if self.privacy.mechanism == "none" else "poisson")
        return chosen == "poisson"

    @property
    def trained_factors(self) -> str:
        """`lora_aggregation`, or what stands for null."""
        return self.lora_aggregation or ("ab" if self.privacy.mechanism == "none" else "ffa")
