"""Does the shared adapter, without anybody's own adapter, make faces into those of the run's clients?

Everybody's voice drives the mean face of the others; the shared adapter of a run that leaks would turn it towards the
speaker's own face, if that person was a client. Measured by the pipeline's identity encoder: how much nearer to the
speaker's true clips the face is with the released adapter than without, for members against outsiders.

A control shows that the instrument can see: an adapter that was taught outright to turn that mean face into one member.
"""

import numpy as np
import torch

from fedtalk_ray.audits.attack import Figure, Outcome
from fedtalk_ray.audits.bounds import separation
from fedtalk_ray.audits.effort import Effort
from fedtalk_ray.audits.subject import Subject
from fedtalk_ray.errors import RunError
from fedtalk_ray.evaluation.statistics import interval
from fedtalk_ray.progress import progress
from fedtalk_ray.training.reliability import generate_windows

ORDER, TITLE = 9, "faces in the shared adapter"
KNOWS = "Holds the released model without anybody's own adapter, and the voice of the person asked about."


def attack(subject: Subject, effort: Effort) -> Outcome:
    """The gap in likeness gained, members minus outsiders, and how well it tells the two apart."""
    outcome, critic = Outcome("identity_leakage", KNOWS), subject.trainer.critic
    if critic is None:
        raise RunError("the pipeline has no identity encoder, so nobody can say whose face is made")
    people = [*subject.members, *subject.outsiders]
    faces = {person: subject.windows(person).reference for person in people}
    with torch.no_grad():
        true = {person: critic.embed(reference).mean(0) for person, reference in faces.items()}
    gained = {}
    for person in progress(people, len(people), "identity leakage"):
        others = face_of_others(faces, subject, person)
        likeness = [made_alike(subject, vector, person, others, true) for vector in (subject.start, subject.released)]
        gained[person] = likeness[1] - likeness[0]
    inside, outside = ([gained[person] for person in group] for group in (subject.members, subject.outsiders))
    # Sorted, so that nobody's own can be read off.
    outcome.series |= {"likeness gained: members": sorted(inside), "likeness gained: outsiders": sorted(outside)}
    if not np.isfinite([*inside, *outside]).all():
        return outcome
    gap = np.mean(inside) - np.mean(outside)
    width = float(np.hypot(interval(inside).half_width or 0.0, interval(outside).half_width or 0.0))
    outcome.figures.append(
        Figure("likeness gained, members - outsiders", float(gap), float(gap - width), float(gap + width), chance=0.0)
    )
    outcome.figures += separation(inside, outside, "likeness gained")
    person = subject.members[0]
    borrowed = face_of_others(faces, subject, person)
    taught = subject.start
    for turn in range(effort.lessons):
        taught = taught + subject.fit_from(taught, person, None, turn, borrowed)
    before, after = (made_alike(subject, vector, person, borrowed, true) for vector in (subject.start, taught))
    outcome.figures.append(Figure("likeness gained, control: taught one member's face", after - before, chance=0.0))
    return outcome


def face_of_others(faces: dict[str, torch.Tensor], subject: Subject, person: str) -> torch.Tensor:
    """The outsiders' mean face without the person, latents [C, h, w]."""
    return torch.stack([faces[other].mean(0) for other in subject.outsiders if other != person]).mean(0)


def made_alike(
    subject: Subject, vector: np.ndarray, person: str, face: torch.Tensor, true: dict[str, torch.Tensor]
) -> float:
    """How much nearer to the person than to everybody else on average a borrowed face is that speaks with its voice."""
    assert subject.trainer.critic is not None
    windows = subject.windows(person)
    subject.borrow(windows, face)
    subject.trainer.load(vector, None)
    subject.trainer.model.eval()
    made = generate_windows(subject.trainer.model, subject.trainer.scheduler, windows, seed=1)
    with torch.no_grad():
        embedded = subject.trainer.critic.embed(made.flatten(0, 1)).mean(0)
    likeness = {other: float(embedded @ vector) for other, vector in true.items()}
    return likeness[person] - float(np.mean([value for other, value in likeness.items() if other != person]))
