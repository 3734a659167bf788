"""Drawing clients: uniformly, by coins, by weights; and dealing them into chunks. None of it lists the population."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedtalk_ray.federation.seeding import derive_seed


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


def into_chunks(cohort: list[str], slots: int) -> list[list[str]]:
    """One chunk of clients per slot, dealt round robin; never an empty chunk."""
    return [chunk for index in range(slots) if (chunk := cohort[index::slots])]
