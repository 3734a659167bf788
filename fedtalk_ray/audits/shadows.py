"""Shadow runs: what an attacker trains with people of its own to learn what a model looks like without somebody."""

from dataclasses import dataclass

import numpy as np

from fedtalk_ray.audits.effort import Effort
from fedtalk_ray.audits.subject import Subject
from fedtalk_ray.progress import ticker
from fedtalk_ray.seeding import derive_seed


@dataclass(frozen=True)
class Shadow:
    """people: whose clips it was trained on. parameters: what came of it, float32 [D]."""

    people: frozenset[str]
    parameters: np.ndarray


def train_shadows(subject: Subject, effort: Effort) -> list[Shadow]:
    """`effort.shadows` runs like the subject's, in the clear and with equal weights, each with half of the outsiders.

    Halves come in pairs that leave nobody in both, so that everybody is out of half of the runs.
    """
    found: list[Shadow] = []
    rounds = min(subject.rounds, effort.shadow_rounds)
    with ticker(effort.shadows * rounds, "membership: training shadow runs") as tick:
        for number in range(effort.shadows):
            rng = np.random.default_rng(derive_seed(subject.config.seed, "shadow", number // 2))
            order = rng.permutation(subject.outsiders)
            half = len(order) // 2
            people = [str(name) for name in (order[half:] if number % 2 else order[:half])]
            shared = subject.start
            for turn in range(rounds):
                seeds = (derive_seed(subject.config.seed, "shadow", number, turn, person) for person in people)
                updates = [
                    subject.fit_from(shared, person, None, seed) for person, seed in zip(people, seeds, strict=True)
                ]
                shared = shared + np.mean(updates, axis=0).astype(np.float32)
                tick()
            found.append(Shadow(frozenset(people), shared))
    return found
