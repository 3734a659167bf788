"""Was this person a client? Asked of the released model alone.

Base-calibrated loss: how much the run lowered the loss on a person's clips, as a share of what it was before. People
differ far more in how hard they are than in how much the run helped them, so the raw loss hardly tells.
Likelihood ratio, offline (Carlini et al. 2022): the same score, minus what it is under shadow runs that the attacker
trains with other people, over its spread there. Without shadow runs (`Effort.shadows` 0) it is left out.
"""

import numpy as np

from fedtalk_ray.audits.attack import Outcome
from fedtalk_ray.audits.bounds import separation
from fedtalk_ray.audits.effort import Effort
from fedtalk_ray.audits.shadows import Shadow, train_shadows
from fedtalk_ray.audits.subject import Subject
from fedtalk_ray.errors import RunError
from fedtalk_ray.progress import progress

ORDER, TITLE = 6, "who was a client"
KNOWS = (
    "Holds the released model, the backbone it began from, and clips of the person asked about; for the likelihood "
    "ratio also people like them, to train shadow runs with."
)


def attack(subject: Subject, effort: Effort) -> Outcome:
    """AUC and TPR at 1% FPR of both scores, members against outsiders."""
    outcome = Outcome("membership", KNOWS)
    people = [*subject.members, *subject.outsiders]

    def losses(vector: np.ndarray, what: str) -> dict[str, float]:
        return {person: subject.loss(vector, person) for person in progress(people, len(people), f"membership: {what}")}

    before = losses(subject.start, "before the run")

    def scores(vector: np.ndarray, what: str) -> dict[str, float]:
        return {person: 1 - loss / before[person] for person, loss in losses(vector, what).items()}

    gained = scores(subject.released, "after it")
    add_figures(outcome, subject, gained, "base-calibrated loss")
    if effort.shadows:
        shadows = train_shadows(subject, effort)
        under = [scores(shadow.parameters, f"shadow run {turn}") for turn, shadow in enumerate(shadows, 1)]
        add_figures(outcome, subject, likelihood_ratio(gained, shadows, under), "likelihood ratio")
    return outcome


def add_figures(outcome: Outcome, subject: Subject, scores: dict[str, float], name: str) -> None:
    """Adds one score's figures and, for the plot, its values."""
    inside, outside = ([scores[who] for who in group] for group in (subject.members, subject.outsiders))
    # Sorted, so that nobody's own can be read off.
    outcome.series |= {f"{name}: members": sorted(inside), f"{name}: outsiders": sorted(outside)}
    if np.isfinite([*inside, *outside]).all():
        outcome.figures += separation(inside, outside, name)


def likelihood_ratio(
    scores: dict[str, float], shadows: list[Shadow], under: list[dict[str, float]]
) -> dict[str, float]:
    """Each person's score in standard deviations above what it is under shadow runs that they were not in.

    One deviation for all, since a few shadow runs say little about each person's. Raises `RunError` for somebody who
    was in every shadow run.
    """
    out = {
        person: [found[person] for shadow, found in zip(shadows, under, strict=True) if person not in shadow.people]
        for person in scores
    }
    if alone := [person for person, values in out.items() if not values]:
        raise RunError(f"{alone[0]} was in every shadow run; take more of them")
    means = {person: float(np.mean(values)) for person, values in out.items()}
    left = [value - means[person] for person, values in out.items() if len(values) > 1 for value in values]
    spread = float(np.std(left)) if left else float(np.std(list(means.values())))
    return {person: (scores[person] - means[person]) / max(spread, 1e-12) for person in scores}
