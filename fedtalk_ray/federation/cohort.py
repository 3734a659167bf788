"""Who takes part in a round."""

import numpy as np

from fedtalk_ray.federation.seeding import derive_seed


def sample_cohort(population: list[str], size: int, seed: int, round_number: int) -> list[str]:
    """`size` clients drawn uniformly without replacement, sorted; everybody when there are not more."""
    if size >= len(population):
        return sorted(population)
    rng = np.random.default_rng(derive_seed(seed, "cohort", round_number))
    return sorted(population[index] for index in rng.choice(len(population), size, replace=False))


def into_chunks(cohort: list[str], slots: int) -> list[list[str]]:
    """One chunk of clients per slot, dealt round robin; never an empty chunk."""
    return [chunk for index in range(slots) if (chunk := cohort[index::slots])]
