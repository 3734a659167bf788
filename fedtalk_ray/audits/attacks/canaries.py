"""One-run audit: clients made up to be found again, half of them in, and what finding them says about epsilon.

Every canary has coordinates of its own, so that one sum holds many of them and tells them apart (Steinke et al. 2023,
"Privacy Auditing in One (1) Training Run"). They take the way of every update: weight, clip, steps, noise, sum,
decoding. A fair coin says who is in. The lower bound on epsilon at 95% confidence must not exceed the accountant's:

server view    who is in takes part in as many rounds as one client did in the run; the cohorts are known
release view   who is in joins each round by the run's sampling rate, and only the sum of all rounds is seen

Two bounds are taken of the same guesses: Steinke's, which holds for every mechanism and cannot exceed about the
logarithm of the number of canaries, and the one for Gaussian-like noise (Mahloujifar et al. 2024), which can.

Beside the bound two things are held to what was promised: the deviation of the noise, from the canaries that are out,
and what any single canary moves.
"""

import math

import numpy as np
from scipy.stats import norm

from fedtalk_ray.audits.attack import Figure, Outcome, fixed_clip_norm
from fedtalk_ray.audits.bounds import CONFIDENCE, auditor
from fedtalk_ray.audits.effort import Effort
from fedtalk_ray.audits.subject import Subject
from fedtalk_ray.audits.views import summed
from fedtalk_ray.federation.privacy_plan import sampling_rate
from fedtalk_ray.federation.secure_aggregator import limits_of, make_codec
from fedtalk_ray.privacy.accounting import Rounds, epsilon
from fedtalk_ray.privacy.protocol import Aborted
from fedtalk_ray.progress import progress
from fedtalk_ray.seeding import derive_seed
from fedtalk_ray.settings import TrainConfig

ORDER, TITLE = 4, "made-up clients"
KNOWS = "Sees all sums that are opened, and chose the updates of half of the clients, which a coin let in or not."

BLOCK = 8
"""Coordinates of one canary."""

LENGTH = 3.0
"""A canary's norm before clipping, in clip norms: the clip always binds."""

RARE = 1e-6
"""How often a sound run may be called broken because of its noise or of one canary. The bounds on epsilon hold with a
probability of 95% each, and in practice, for all thresholds at once, with far more."""


def attack(subject: Subject, effort: Effort) -> Outcome:
    """Lower bounds on epsilon in both views, beside the accountant's."""
    taken = max(subject.ledger.participations().values(), default=subject.rounds)
    rate = sampling_rate(subject.config, len(subject.clients))
    rounds, taken = (min(count, effort.repeats) for count in (subject.rounds, taken))
    return audit_rounds(subject.config, rate, rounds, taken, effort.canaries)


def audit_rounds(config: TrainConfig, rate: float, rounds: int, taken: int, canaries: int) -> Outcome:
    """rate: chance of being in a round. rounds: of the run. taken: rounds of one client. canaries: how many."""
    outcome = Outcome("canaries", KNOWS)
    rng = np.random.default_rng(derive_seed(config.seed, "canaries"))
    inside = rng.random(canaries) < 0.5
    measure(outcome, config, "server view", np.tile(inside, (taken, 1)), inside, 1.0, rng)
    if rate < 1:
        joined = inside & (rng.random((rounds, canaries)) < rate)
        measure(outcome, config, "release view", joined, inside, rate, rng)
    return outcome


def measure(
    outcome: Outcome,
    config: TrainConfig,
    view: str,
    joined: np.ndarray,
    inside: np.ndarray,
    rate: float,
    rng: np.random.Generator,
) -> None:
    """Adds one view's figures. joined: bool [rounds, canaries], who is in which sum. inside: whom the coin let in."""
    rounds, codec = len(joined), make_codec(config, BLOCK * len(inside))
    # Of a round that too few joined nothing is opened.
    joined = joined[joined.sum(1) >= (limits_of(config.privacy).floor if config.aggregation == "secure" else 1)]
    scores = np.zeros(len(inside))
    try:
        for who in progress(joined, len(joined), f"canaries: {view}"):
            scores += canary_scores(config, who, rng)
    except Aborted as error:
        outcome.broken.append(f"{view}: the server threw a round of honest clients away ({error})")
        return
    outcome.series |= {
        f"{view}: canaries inside": scores[inside].tolist(),
        f"{view}: canaries outside": scores[~inside].tolist(),
    }
    if not np.isfinite(scores).all():
        return
    noise = codec.noise
    promised = 0.0 if noise is None else noise.multiplier * noise.sensitivity / codec.scale
    claim = epsilon([Rounds(noise, rate, rounds)], config.privacy.delta) if noise else None
    found = auditor(scores[inside], scores[~inside])
    delta = config.privacy.delta
    bounds = {
        "one run": found.epsilon_one_run(1 - CONFIDENCE, delta),
        "one run, Gaussian-like noise": found.epsilon_one_run_fdp(1 - CONFIDENCE, delta),
    }
    for name, bound in bounds.items():
        outcome.figures.append(Figure(f"{view}: epsilon at least, {name}", float(bound), claim=claim))
        if claim is not None and not bound <= claim:
            outcome.broken.append(
                f"{view}: canaries prove an epsilon of at least {bound:.2f}, and the accountant claims {claim:.2f}"
            )
    spread = promised * math.sqrt(len(joined))
    check_noise(outcome, view, scores[~inside], spread)
    if config.aggregation == "secure" or noise:
        check_largest(outcome, view, scores, joined.sum(0), spread)


def canary_scores(config: TrainConfig, joined: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float64 [canaries]: how much of each one round's opened sum holds, in clip norms. joined: bool [canaries]."""
    bound, dimension = fixed_clip_norm(config), BLOCK * len(joined)
    value = LENGTH * bound / math.sqrt(BLOCK)
    updates, weights = {}, {}
    for canary in np.flatnonzero(joined):
        update = np.zeros(dimension, np.float32)
        update[BLOCK * canary : BLOCK * (canary + 1)] = value
        # Weights differ, and the clip makes all of them alike.
        name = f"canary{canary:05d}"
        updates[name], weights[name] = update, float(rng.uniform(0.5, 1.0))
    total = summed(config, updates, weights, rng)
    return total.reshape(len(joined), BLOCK).sum(1) / math.sqrt(BLOCK) / bound


def check_noise(outcome: Outcome, view: str, outside: np.ndarray, promised: float) -> None:
    """The noise in the sums against what the accountant counts on."""
    if not promised:
        return
    found = float(np.sqrt(np.mean(outside**2)))
    outcome.figures.append(Figure(f"{view}: noise over what is promised", found / promised, chance=1.0))
    # The mean of n squares of normal variables deviates by sqrt(2 / n).
    least = 1 + norm.ppf(RARE) * math.sqrt(2 / len(outside))
    if (found / promised) ** 2 < least:
        outcome.broken.append(f"{view}: the noise in the sums has {found / promised:.3f} of the promised deviation")


def check_largest(outcome: Outcome, view: str, scores: np.ndarray, times: np.ndarray, spread: float) -> None:
    """What one client moves at most: one clip norm a round, beside the noise."""
    beyond = np.abs(scores) - times
    reach = spread * float(norm.isf(RARE / len(scores)))
    # The rounding to steps, and of the sums to float32.
    slack = 0.01 * max(1.0, float(times.max(initial=0)))
    outcome.figures.append(Figure(f"{view}: clip norms beyond what one client may move", float(beyond.max())))
    if float(beyond.max()) > reach + slack:
        worst = int(beyond.argmax())
        outcome.broken.append(
            f"{view}: one client moved the sums by {abs(scores[worst]):.1f} clip norms in {times[worst]} rounds"
        )
