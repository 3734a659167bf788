"""From a budget to noise before a run starts: how large z must be, and what all rounds will have spent."""

from dataclasses import dataclass
from math import ceil

from fedtalk_ray.errors import ConfigError
from fedtalk_ray.privacy.accounting import Kind, Noise, Rounds, epsilon, noise_multiplier
from fedtalk_ray.privacy.publication import simulation
from fedtalk_ray.settings import ADAPTIVE_FROM, PrivacyConfig, TrainConfig

_STEPS, _VALUES = 2.0**18, 10**8
"""Finer steps and shorter vectors give less; what they add to Skellam's bound is far below a thousandth."""


@dataclass(frozen=True)
class PrivacyPlan:
    """rate: chance that a client is in a cohort, 1 where nothing amplifies. cap: rounds of one client at most."""

    kind: Kind
    delta: float
    rate: float
    rounds: int
    cap: int

    def _noise(self, multiplier: float) -> Noise:
        return Noise(self.kind, multiplier, _STEPS, _VALUES)

    def spent(self, multiplier: float) -> dict[str, float]:
        """Epsilon of the whole run by view."""
        noise = self._noise(multiplier)
        server = epsilon([Rounds(noise, 1.0, self.cap)], self.delta)
        # Nobody takes part more often than the cap allows, whatever the bound for sampled rounds gives.
        return {"release": min(epsilon([Rounds(noise, self.rate, self.rounds)], self.delta), server), "server": server}

    def multiplier(self, target: float, view: str) -> float:
        """The smallest z that keeps that view's epsilon within `target`. `ConfigError` when none does."""
        # Either way of counting protects against who sees the models alone.
        ways = [(1.0, self.cap), (self.rate, self.rounds)] if view == "release" else [(1.0, self.cap)]
        found, refused = [], ""
        for rate, count in ways:
            try:
                found.append(noise_multiplier(target, self.delta, rate=rate, count=count, make=self._noise))
            except ValueError as error:
                refused = str(error)
        if not found:
            raise ConfigError(f"privacy.epsilon: {refused}")
        return min(found)


def sampling_rate(config: TrainConfig, population: int) -> float:
    """The chance that a client is in a cohort that amplifies privacy; 1 for cohorts that do not."""
    privacy = config.privacy
    if privacy.simulated_cohort and privacy.simulated_population:
        return privacy.simulated_cohort / privacy.simulated_population
    return min(1.0, config.cohort.size / population) if config.poisson else 1.0


def plan_of(config: TrainConfig, population: int) -> PrivacyPlan | None:
    """None without noise."""
    privacy = config.privacy
    if privacy.mechanism == "none":
        return None
    rounds = config.all_rounds
    cap = min(privacy.participation_cap or rounds, rounds)
    return PrivacyPlan(privacy.mechanism, privacy.delta, sampling_rate(config, population), rounds, cap)


def with_noise(config: TrainConfig, population: int) -> TrainConfig:
    """The configuration with its noise multiplier settled, and a cohort no larger than the population, which sums are
    divided by. Raises `ConfigError` where the budget cannot hold."""
    if config.privacy.mechanism != "none" and config.cohort.size > population:
        config = config.model_copy(update={"cohort": config.cohort.model_copy(update={"size": population})})
        if drowned := config.drowned_statistics:
            raise ConfigError(drowned)
        if config.privacy.clipping == "adaptive" and not config.privacy.simulated_cohort and population < ADAPTIVE_FROM:
            raise ConfigError(
                f"privacy.clipping adaptive needs a cohort of {ADAPTIVE_FROM}, or it drowns in noise, and the shards "
                f"hold {population} clients; take fixed"
            )
    privacy, plan = config.privacy, plan_of(config, population)
    if plan is None:
        return config
    if privacy.noise_multiplier is None:
        assert privacy.epsilon is not None
        chosen = plan.multiplier(privacy.epsilon, privacy.view)
        return config.model_copy(update={"privacy": _replaced(privacy, noise_multiplier=chosen)})
    if privacy.epsilon is not None:
        cost = plan.spent(privacy.noise_multiplier)[privacy.view]
        if cost > privacy.epsilon + 1e-9:
            raise ConfigError(
                f"privacy.noise_multiplier {privacy.noise_multiplier:g} spends epsilon {cost:.2f} in "
                f"{config.all_rounds} rounds ({privacy.view} view), and the budget is {privacy.epsilon:g}; leave it "
                f"out, or lower `rounds`{simulation(privacy, '; ')}"
            )
    return config


def _replaced(privacy: PrivacyConfig, **changes: object) -> PrivacyConfig:
    return privacy.model_copy(update=changes)


def plan_lines(
    clients: int,
    rounds: int,
    target: float,
    delta: float = 1e-5,
    cohort: int | None = None,
    cap: int | None = None,
    mechanism: str = "skellam",
) -> list[str]:
    """How much noise keeps a run within a budget, for both observers, and the settings that say so.

    cohort: clients expected a round; None for a quarter. cap: a client's rounds at most; None for the expected number.
    Raises `ConfigError` for what is no budget, no cohort, or needs more noise than there is.
    """
    if mechanism not in ("skellam", "gaussian"):
        raise ConfigError(f"--mechanism is {mechanism!r}; known: skellam, gaussian")
    check_budget(target, delta)
    size = cohort if cohort is not None else ceil(clients / 4)
    if size > clients:
        raise ConfigError(f"--cohort is {size}, and there are {clients} clients")
    rate = size / clients
    most = min(cap or ceil(rate * rounds), rounds)
    found = PrivacyPlan(mechanism, delta, rate, rounds, most)  # type: ignore[arg-type]
    lines = [
        f"{clients} clients, {rounds} rounds, cohorts of {size} expected (rate {rate:.3g}), at most {most} rounds each",
        f"epsilon {target:g} at delta {delta:g}, {mechanism} noise:",
    ]
    for view, who in (("release", "sees the models, not the cohorts"), ("server", "knows the cohorts")):
        multiplier = found.multiplier(target, view)
        other = "server" if view == "release" else "release"
        lines.append(
            f"  {view:<8} noise multiplier {multiplier:.3f} against who {who} "
            f"({other} view then: epsilon {found.spent(multiplier)[other]:.2f})"
        )
    lines.append(
        f"in a run: privacy.mechanism={mechanism} privacy.epsilon={target:g} privacy.delta={delta:g} "
        f"privacy.participation_cap={most} privacy.view=release|server privacy.clip_norm=..."
    )
    return lines


def check_budget(target: float | None, delta: float) -> None:
    """Raises `ConfigError` for what is no budget."""
    if target is not None and not target > 0:
        raise ConfigError(f"--epsilon is {target:g}; it must be above 0")
    if not 0 < delta < 1:
        raise ConfigError(f"--delta is {delta:g}; it must lie between 0 and 1, well below 1 / clients")
