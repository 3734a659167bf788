"""Who takes part in a round."""

import secrets

import numpy as np

from fedtalk_ray.federation.seeding import derive_seed


def sample_cohort(population: list[str], size: int, seed: int, round_number: int) -> list[str]:
    """`size` clients drawn uniformly without replacement, sorted; everybody when there are not more."""
    if size >= len(population):
        return sorted(population)
    rng = np.random.default_rng(derive_seed(seed, "cohort", round_number))
    return sorted(population[index] for index in rng.choice(len(population), size, replace=False))


def poisson_cohort(population: list[str], rate: float, spent: dict[str, int], cap: int | None) -> list[str]:
    """Everybody by a coin of their own with chance `rate`, sorted; who reached the participation cap stays out.

    Coins come from the system's randomness: amplification by sampling needs cohorts that nobody can work out.
    """
    coins = secrets.SystemRandom()
    return sorted(
        client for client in population if coins.random() < rate and (cap is None or spent.get(client, 0) < cap)
    )


def into_chunks(cohort: list[str], slots: int) -> list[list[str]]:
    """One chunk of clients per slot, dealt round robin; never an empty chunk."""
    return [chunk for index in range(slots) if (chunk := cohort[index::slots])]
