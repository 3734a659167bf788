"""One-shot estimate of epsilon with random canaries among the run's own clients (Andrew et al. 2023).

Random directions of the whole model are almost orthogonal to everything, so the cosine of one that was not in with what
the run changed is normal around 0 with variance 1 / D; how far those that were in lie above says how large an epsilon
this attacker sees. An estimate, neither an upper nor a lower bound: it is shown and not asserted.
"""

import math

import numpy as np

from fedtalk_ray.audits.attack import Figure, Outcome, Round, fixed_clip_norm
from fedtalk_ray.audits.effort import Effort
from fedtalk_ray.audits.subject import Subject
from fedtalk_ray.audits.views import summed
from fedtalk_ray.federation.secure_aggregator import make_codec
from fedtalk_ray.privacy.accounting import Rounds, epsilon
from fedtalk_ray.privacy.protocol import Aborted
from fedtalk_ray.seeding import derive_seed

ORDER, TITLE = 5, "made-up clients, estimated"
KNOWS = "Sees what one round changed, beside all that the run's clients sent, and knows the canaries' directions."

CANARIES = 40


def attack(subject: Subject, effort: Effort) -> Outcome:
    """The estimate for one round, beside the accountant's epsilon for one round in the server view."""
    return estimate(subject.round)


def estimate(round: Round) -> Outcome:
    """A round of the run's own updates and `CANARIES` random ones, and as many that are left out."""
    outcome, config = Outcome("one_shot", KNOWS), round.config
    dimension = len(round.shared)
    rng = np.random.default_rng(derive_seed(config.seed, "one-shot"))
    directions = rng.standard_normal((2 * CANARIES, dimension), np.float32)
    for direction in directions:
        direction /= np.linalg.norm(direction)
    # As long as the clip lets a weighted update be; where nothing clips, as long and as heavy as a usual one.
    if config.privacy.mechanism == "none":
        length = float(np.median([np.linalg.norm(update) for update in round.updates.values()]))
        weight = float(np.median(list(round.weights.values())))
    else:
        length, weight = fixed_clip_norm(config), 1.0
    inside = {
        f"canary{place:03d}": np.float32(length) * direction for place, direction in enumerate(directions[:CANARIES])
    }
    weights = round.weights | dict.fromkeys(inside, weight)
    try:
        changed = summed(config, round.updates | inside, weights, rng)
    except Aborted as error:
        outcome.broken.append(f"the server threw a round of honest clients away ({error})")
        return outcome
    cosines = directions @ changed / np.linalg.norm(changed)
    seen, unseen = cosines[:CANARIES], cosines[CANARIES:]
    outcome.series |= {"cosine: canaries inside": seen.tolist(), "cosine: canaries outside": unseen.tolist()}
    noise = make_codec(config, dimension).noise
    claim = epsilon([Rounds(noise, 1.0, 1)], config.privacy.delta) if noise else None
    distance = float(seen.mean()) * math.sqrt(dimension)
    # Imported where it is called: it comes with the extra `audit`.
    from dp_accounting import get_epsilon_gaussian

    found = get_epsilon_gaussian(1 / distance, config.privacy.delta) if distance > 0 else 0.0
    outcome.figures.append(Figure("epsilon estimated, one round, server view", float(found), claim=claim))
    outcome.notes.append("An estimate, no bound: it may lie above the claim by chance, and is not asserted.")
    return outcome
