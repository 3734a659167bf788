"""Whose update is this? The nearest among updates that the attacker made itself from other clips of every client.

What all updates have in common is taken off first: the mean of the attacker's own.
"""

import numpy as np

from fedtalk_ray.audits.attack import NotFinite, Outcome
from fedtalk_ray.audits.bounds import proportion
from fedtalk_ray.audits.effort import Effort
from fedtalk_ray.audits.subject import Subject
from fedtalk_ray.audits.views import Views
from fedtalk_ray.progress import progress
from fedtalk_ray.seeding import derive_seed

ORDER, TITLE = 7, "whose update it is"
KNOWS = (
    "Knows who takes part, holds the round's model and one other clip of every client, and trains on it as a client "
    "does. The server alone sees what the run shows it; who knows everything else also has all other updates."
)


def attack(subject: Subject, effort: Effort) -> Outcome:
    """Rank-1 rate over the members, for both attackers, against one in so many."""
    outcome, round = Outcome("reidentification", KNOWS), subject.round
    enrolled = {}
    for client in progress(subject.members, len(subject.members), "reidentification: enrolling"):
        seed = derive_seed(subject.config.seed, "enrolment", client)
        enrolled[client] = subject.fit_from(round.shared, client, "val", seed)
    rng = np.random.default_rng(derive_seed(subject.config.seed, "reidentification"))
    seen = Views(round, rng)
    hits: dict[str, int] = {}
    for client in subject.members:
        for attacker, update in seen.of(client).items():
            hits[attacker] = hits.get(attacker, 0) + (nearest(update, enrolled) == client)
    for attacker, count in hits.items():
        name = f"rank-1, {attacker}"
        outcome.figures.append(proportion(name, count, len(subject.members), 1 / len(subject.members)))
    return outcome


def nearest(seen: np.ndarray, enrolled: dict[str, np.ndarray]) -> str:
    """The client whose enrolment has the largest cosine with what was seen, both without the common part.

    Raises `NotFinite`: nothing is nearest to what is no number.
    """
    common = np.mean(list(enrolled.values()), axis=0)
    # What was seen may be longer, as a sum is, or shorter, as what was clipped: its common part is taken to be as long.
    seen = seen / max(float(np.linalg.norm(seen)), 1e-300) * float(np.linalg.norm(common)) - common
    cosines = {
        client: float(seen @ (update - common)) / float(np.linalg.norm(update - common))
        for client, update in enrolled.items()
    }
    if not np.isfinite(list(cosines.values())).all():
        raise NotFinite("an update holds values that are not finite, so nothing is nearest to it")
    return max(cosines, key=lambda client: cosines[client])
