"""Which clients are asked in a round, by `cohort.sampling`. What each way looks at stands beside it.

uniform   nothing.
poisson   nothing; the coins are the system's, because cohorts that somebody could work out amplify no privacy.
size      training frames, from the shards' manifest. Only where these are no secret (aggregation: plain).
balanced  who took part how often, from the history of cohorts that the server knows in any case.
reliable  the last reliability scores that clients reported in the clear (aggregation: plain). Who never took part
          counts as the best seen so far, so that everybody is tried.
A trace of when clients are on narrows any of the first and the last three to those that are on.
"""

import csv
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import ceil, comb, floor
from pathlib import Path
from typing import Any

import numpy as np

from fedtalk_ray.errors import ConfigError
from fedtalk_ray.federation.secure_aggregator import limits_of
from fedtalk_ray.privacy.noise import system_rng
from fedtalk_ray.seeding import derive_seed
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.population import Population

MOST_TOO_SMALL = 0.1
"""Share of rounds that may be given up because a Poisson cohort is too small."""


class Sampler:
    """Draws cohorts from a population, the same ones for the same seed and history (but for poisson)."""

    def __init__(self, config: TrainConfig, population: Sequence[str]) -> None:
        """Raises `ConfigError` for a trace that cannot be read or that names nobody of the population."""
        self._config, self._population = config, population
        self._way = "poisson" if config.poisson else config.cohort.sampling or "uniform"
        self._trace = read_trace(config.cohort.trace, population) if config.cohort.trace else None
        self._sizes: dict[str, float] = {}

    @property
    def spare(self) -> int:
        """How many clients cohorts can do without. Poisson cohorts, drawn from all, get smaller by each of them: by an
        eighth at most."""
        if self._way == "poisson":
            return len(self._population) // 8
        return len(self._population) - ceil(self._config.cohort.size * (1 + self._config.cohort.over_select))

    @property
    def looks_back(self) -> bool:
        """Whether `cohort` needs the history."""
        return self._way in ("balanced", "reliable")

    def cohort(
        self,
        round_number: int,
        history: Sequence[Mapping[str, Any]] = (),
        spent: Mapping[str, int] | None = None,
        left_out: Collection[str] = (),
    ) -> list[str]:
        """The clients of a round, sorted.

        history: the rounds so far, as in history.jsonl. spent: how often clients were in charged rounds, for
        `privacy.participation_cap`. left_out: who sits out this one (`federation.left_out`).
        """
        config, population = self._config, self._population
        if self._way == "poisson":
            rate = min(1.0, config.cohort.size / len(population))
            drawn = poisson_cohort(population, rate, spent or {}, config.privacy.participation_cap, system_rng())
            # Drawn first: everybody's chance is the one that is accounted, or none.
            return [client for client in drawn if client not in left_out]
        size = ceil(config.cohort.size * (1 + config.cohort.over_select))
        if config.cohort.statistics:  # without over_select
            size = config.cohort.size_in(config.phase_at(round_number).name)
        present: Sequence[str] = population
        if self._trace is not None:
            present = self._trace.present((round_number - 1) * config.cohort.trace_round_s)
        if left_out:
            present = [client for client in present if client not in left_out]
        if self._way == "uniform":
            return sample_cohort(present, size, config.seed, round_number)
        rng = np.random.default_rng(derive_seed(config.seed, "cohort", round_number))
        return sorted(weighted_cohort(present, size, self._log_weights(present, history), rng))

    def _log_weights(self, present: Sequence[str], history: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Logarithms of the clients' chances against each other."""
        if self._way == "size":
            assert isinstance(self._population, Population), "clients whose sizes are known"
            for client in present:
                if client not in self._sizes:
                    self._sizes[client] = np.log(self._population.frames(client))
            return np.array([self._sizes[client] for client in present])
        if self._way == "balanced":
            taken = Counter(client for record in history for client in record.get("cohort", ()))
            # Who was in one round less comes before everybody who was in one more.
            return -1e6 * np.array([taken[client] for client in present], float)
        scores: dict[str, float] = {}
        for record in history:
            scores |= {c["client"]: c["score"] for c in record.get("clients", ()) if c["score"] is not None}
        best = max(scores.values(), default=0.0)
        return self._config.strategy.gamma * np.array([scores.get(client, best) for client in present], float)


def check_cohorts(config: TrainConfig, population: int) -> None:
    """Raises `ConfigError` where sums could not be opened: of too few clients, of Poisson cohorts that are often too
    small, or of cohorts of whom too few are waited for; and where nobody would be left to draw."""
    check_groups(config, population)
    check_cap(config, population)
    if config.aggregation != "secure":
        return
    limits = limits_of(config.privacy)
    if not config.poisson:
        size, over = config.cohort.size, config.cohort.over_select
        if population < limits.floor:
            raise ConfigError(
                f"aggregation: secure opens no sum of fewer than {limits.floor} clients, and the shards "
                f"{config.shards} hold {population}; prepare more people, make several clients of one with "
                "population.pieces_per_client, or set aggregation: plain"
            )
        asked = min(population, ceil(size * (1 + over)))
        if over and size < limits.needed(asked) <= asked:
            most = max((n for n in range(size, asked) if limits.needed(n) <= size), default=size)
            raise ConfigError(
                f"cohort.over_select {over:g} asks {asked} clients and waits for {size}, but of {asked} asked no sum "
                f"of fewer than {limits.needed(asked)} is opened; take {floor(100 * (most / size - 1)) / 100:g} or "
                "less"
            )
        return
    fewest, size = limits.floor, config.cohort.size
    share = too_small(population, size, fewest)
    if share > MOST_TOO_SMALL:
        larger = range(size + 1, population + 1)
        enough = next((each for each in larger if too_small(population, each, fewest) <= MOST_TOO_SMALL), None)
        mend = f"set cohort.size to {enough} or more" if enough else f"it takes {fewest} clients or more"
        raise ConfigError(
            f"cohort.size {size} is the mean of Poisson cohorts: of {population} clients, {100 * share:.0f}% of "
            f"rounds would have fewer than {fewest} and be given up; {mend}"
        )


def check_cap(config: TrainConfig, population: int) -> None:
    """Raises `ConfigError` where all clients together may not take part as often as cohorts are drawn."""
    cap, size, rounds = config.privacy.participation_cap, min(config.cohort.size, population), config.all_rounds
    if cap is not None and cap * population < rounds * size:
        raise ConfigError(
            f"privacy.participation_cap {cap}: {population} clients may take part {cap * population} times together, "
            f"and {rounds} rounds of {size} want {rounds * size}; set it to {ceil(rounds * size / population)} or "
            f"more, or have {cap * population // size} rounds over all phases"
        )


def check_groups(config: TrainConfig, population: int) -> None:
    """Raises `ConfigError` where `strategy.groups` cannot be."""
    groups, size = config.strategy.groups, min(config.cohort.size, population)
    if groups == 1:
        return
    name = f"strategy.groups {groups}"
    if config.aggregation != "secure" or config.privacy.mechanism != "none":
        raise ConfigError(f"{name}: groups have sums of their own under aggregation: secure without noise; set 1")
    if config.poisson or config.cohort.over_select:
        raise ConfigError(f"{name}: groups need cohorts of a fixed size, without cohort.over_select or poisson; set 1")
    floor = limits_of(config.privacy).floor
    if groups == 2 or size // groups < floor:
        most = size // floor
        mend = f"3 to {most}" if most >= 3 else f"1, or a cohort of {3 * floor}"
        raise ConfigError(f"{name}: three or more, each of {floor} clients at least, of a cohort of {size}; set {mend}")


def dealt(cohort: Sequence[str], groups: int, rng: np.random.Generator) -> list[list[str]]:
    """The cohort in so many groups whose sizes differ by one at most, each sorted.

    rng: from the system's randomness, so that nobody chooses whom it is with.
    """
    shuffled = rng.permutation(len(cohort))
    return [sorted(cohort[int(index)] for index in shuffled[first::groups]) for first in range(groups)]


def too_small(population: int, size: int, floor: int) -> float:
    """The chance that a Poisson cohort of `size` expected clients has fewer than `floor`."""
    rate = min(1.0, size / population)
    return sum(
        comb(population, k) * rate**k * (1 - rate) ** (population - k) for k in range(min(floor, population + 1))
    )


class Trace:
    """When clients are on."""

    def __init__(self, spans: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        """spans: client -> (on, off) in seconds; on is within, off is not."""
        self._spans = {client: sorted(times) for client, times in spans.items()}

    def present(self, second: float) -> list[str]:
        """Who is on at a time, sorted."""
        return sorted(client for client, times in self._spans.items() if _within(times, second))


def read_trace(path: str, population: Sequence[str]) -> Trace:
    """A CSV file with a header `client,on,off`. Raises `ConfigError` naming the line."""
    spans: dict[str, list[tuple[float, float]]] = {}
    try:
        with open(Path(path), newline="") as file:
            table = csv.DictReader(file)
            if table.fieldnames is None or list(table.fieldnames) != ["client", "on", "off"]:
                raise ConfigError(f"cohort.trace {path} must begin with the line client,on,off")
            for number, row in enumerate(table, 2):
                try:
                    on, off = float(row["on"]), float(row["off"])
                except (TypeError, ValueError) as error:
                    raise ConfigError(f"cohort.trace {path} line {number}: on and off must be seconds") from error
                if not 0 <= on < off:
                    raise ConfigError(f"cohort.trace {path} line {number}: on {on:g} must be before off {off:g}")
                if row["client"] not in population:
                    raise ConfigError(
                        f"cohort.trace {path} line {number}: client {row['client']!r} is not in the population "
                        f"({population[0]} to {population[-1]})"
                    )
                spans.setdefault(row["client"], []).append((on, off))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cohort.trace {path} cannot be read: {error}") from error
    if not spans:
        raise ConfigError(f"cohort.trace {path} names no client")
    return Trace(spans)


def _within(times: Sequence[tuple[float, float]], second: float) -> bool:
    """Spans of one client may overlap; they are sorted by their beginning."""
    begun = bisect_right(times, (second, float("inf")))
    return any(off > second for _, off in times[:begun])


def sample_cohort(population: Sequence[str], size: int, seed: int, round_number: int) -> list[str]:
    """`size` clients drawn uniformly without replacement, sorted; everybody when there are not more."""
    if size >= len(population):
        return sorted(population)
    rng = np.random.default_rng(derive_seed(seed, "cohort", round_number))
    return sorted(population[int(index)] for index in rng.choice(len(population), size, replace=False))


def poisson_cohort(
    population: Sequence[str], rate: float, spent: Mapping[str, int], cap: int | None, rng: np.random.Generator
) -> list[str]:
    """Everybody by a coin of their own with chance `rate`, sorted; who reached the participation cap stays out.

    rng: from the system's randomness: amplification by sampling needs cohorts that nobody can work out.
    """
    # The number of heads is binomial, and given it every set of so many clients is as likely as any other.
    heads = int(rng.binomial(len(population), rate))
    chosen = (population[int(index)] for index in rng.choice(len(population), heads, replace=False, shuffle=False))
    return sorted(client for client in chosen if cap is None or spent.get(client, 0) < cap)


def weighted_cohort(
    population: Sequence[str], size: int, log_weights: np.ndarray, rng: np.random.Generator
) -> list[str]:
    """`size` clients without replacement, each next one with chances as the weights of those left.

    By Gumbel noise on the logarithms (Efraimidis and Spirakis 2006 in another form): the largest are such a sample.
    """
    if size >= len(population):
        return list(population)
    keys = log_weights + rng.gumbel(size=len(population))
    return [population[int(index)] for index in np.argpartition(-keys, size - 1)[:size]]
