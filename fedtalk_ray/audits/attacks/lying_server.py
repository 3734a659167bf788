"""The attack on what clients themselves insist on: a server that lies, with clients of its own, and one bad client.

Attacked guarantees: whatever a server says of who is there, clients give it no sum over few of the cohort that was
planned (`privacy.secure_client`); no second masked update of a round (`privacy.client_record`); no say in whom they
draw as holders (`privacy.graph`). Without noise one client, whatever it sends, moves the average by no more than the
clip norm (`privacy.update_codec`).

The clients run the project's own code on short vectors. Not covered: lies of other kinds, and more of the server's own
clients than the protocol bears; the protocol's own tests play those.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom, hypergeom

from fedtalk_ray.audits.attack import Figure, Outcome, Round, fixed_clip_norm
from fedtalk_ray.audits.effort import Effort
from fedtalk_ray.audits.liar import Lie
from fedtalk_ray.audits.recorded_exchange import clear_sum, enlarged, open_run, run_exchange, settings_for, shortened
from fedtalk_ray.federation.secure_aggregator import limits_of, make_codec
from fedtalk_ray.privacy import graph
from fedtalk_ray.privacy.fixed_point import to_integers, to_ring
from fedtalk_ray.privacy.protocol import STAGES
from fedtalk_ray.training.secure_clients import SecureClients

ORDER, TITLE = 3, "the server, when it lies"
KNOWS = (
    "The parameter server, which signs and says what it likes and has clients of its own; and without noise one client "
    "that sends what it likes."
)

VALUES = 1000
"""Of each vector, at most."""
LIED_TO = 24
"""Clients whom the server lies to at least: of fewer so few may be missing that there is nothing to lie about."""
CHANCE = 2e-6
"""How often the statistical check may fail a sound run."""

DID = {
    "advertise": "advertised",
    "share": "dealt shares",
    "mask": "sent masked updates",
    "confirm": "confirmed the survivors",
}


def attack(subject: Any, effort: Effort) -> Outcome:
    """subject.round: the `Round` whose clients are lied to. Always the same work, whatever the effort."""
    outcome = Outcome("lying_server", KNOWS)
    audited = shortened(subject.round, VALUES)
    if audited.config.aggregation == "plain":
        outcome.figures.append(Figure("rules that hold a server", 0.0))
        outcome.notes.append("Nothing is promised against the server: aggregation is plain, and it need not lie.")
        return outcome
    most, size = limits_of(audited.config.privacy).complete_up_to, audited.config.cohort.size
    cohort = enlarged(audited, max(most + 1, LIED_TO) if size > most else min(LIED_TO, most))
    lines = [*few_are_there(cohort), *asked_again(cohort)]
    if len(cohort.updates) > most:
        lines += [*one_neighbourhood(cohort), *holders_with_a_say(cohort)]
    outcome.figures.append(Figure("lies that clients go along with", float(len(lines))))
    outcome.broken += lines
    if audited.config.privacy.mechanism == "none":
        check_bad_client(audited, outcome)
    return outcome


def few_are_there(audited: Round) -> Iterator[str]:
    """One stage after the other is said to have been answered by few: by one too few, and by the fewest that a sum may
    ever be over, who in league are all but one."""
    names, limits = sorted(audited.updates), limits_of(audited.config.privacy)
    needed = min(limits.survivors(len(names)), graph.quorum(len(names)))
    for stage in STAGES[:-1]:
        for count in sorted({min(limits.floor, needed - 1), needed - 1}):
            with tempfile.TemporaryDirectory() as place:
                shares = count if stage == "advertise" else None
                lie = begin(audited, Path(place), shares)
                yield from honestly(lie, stage, names)
                lie.ask(names[:count])
                if stage == "share" and len(names) > limits.complete_up_to:
                    # There a client is told of those alone with whom it masks; it must stop at the next stage.
                    lie.ask()
                if not lie.ask():
                    continue
                yield f"clients go on where {count} of {len(names)} are said to have {DID[stage]}; {needed} must have"
                while lie.ask():
                    pass
                if lie.is_open:
                    yield f"a sum over {count} clients of {len(names)} was opened; {needed} are promised"


def one_neighbourhood(audited: Round) -> Iterator[str]:
    """On a sparse graph a client and all with whom it masks confirm the survivors, and nobody else."""
    names = sorted(audited.updates)
    with tempfile.TemporaryDirectory() as place:
        lie = begin(audited, Path(place))
        yield from honestly(lie, "confirm", names)
        first = names[0]
        arc = {
            first,
            *lie.holders.get(first, set()),
            *(name for name in names if first in lie.holders.get(name, set())),
        }
        few = sorted(arc, key=lambda name: (name != first, name))[: graph.quorum(len(names)) - 1]
        lie.ask(few)
        if lie.ask():
            yield f"clients open their shares when one neighbourhood, {len(few)} of {len(names)}, has confirmed"


def holders_with_a_say(audited: Round) -> Iterator[str]:
    """On a sparse graph fewer are said to have advertised: clients must lack those of their holders, and draw no
    others in their place."""
    names, limits = sorted(audited.updates), limits_of(audited.config.privacy)
    drawn = graph.holders(len(names), limits.complete_up_to)
    gone = len(names) // 8
    with tempfile.TemporaryDirectory() as place:
        lie = begin(audited, Path(place))
        lie.ask(names[gone:])
        lie.ask()
        whole = sum(len(held) == drawn for held in lie.holders.values())
        # That none of its holders is among those who are gone.
        lucky = hypergeom.pmf(0, len(names) - 1, gone, drawn)
        if binom.sf(whole - 1, len(lie.holders), lucky) < CHANCE:
            yield "clients draw their holders from those who are said to be there: the server has a say in who they are"


def asked_again(audited: Round) -> Iterator[str]:
    """A round that clients have sent masked updates of is begun again: in the same process, in another after a
    restart, under an earlier number, and in two exchanges at a time."""
    names = sorted(audited.updates)
    privacy = audited.config.privacy.model_copy(update={"participation_cap": None})
    config = audited.config.model_copy(update={"rounds": max(3, audited.config.rounds), "privacy": privacy})
    audited = Round(config, audited.shared, audited.frozen, audited.updates, audited.weights)
    with tempfile.TemporaryDirectory() as place:
        config = open_run(audited, Path(place) / "run")

        def slot() -> SecureClients:
            return SecureClients(config, "faces", len(audited.shared), audited.frozen)

        clients = slot()
        lie = Lie(audited, config, clients, 1, 2)
        yield from honestly(lie, "confirm", names)
        for exchange, (restarted, number, how) in enumerate(
            [
                (False, 2, "that they answered before"),
                (True, 2, "that they answered before they were restarted"),
                (True, 1, "that is before one they answered"),
            ],
            2,
        ):
            lie = Lie(audited, config, slot() if restarted else clients, exchange, number)
            for _ in STAGES[:2]:
                lie.ask()
            if lie.ask():
                yield f"clients send a second masked update of a round {how}"
        lies = [Lie(audited, config, slot(), exchange, 3) for exchange in (5, 6)]
        for _ in STAGES[:2]:
            for lie in lies:
                lie.ask()
        lies[0].ask()
        if lies[1].ask():
            yield "clients send two masked updates of a round, in two exchanges at a time"


def begin(audited: Round, place: Path, shares: int | None = None) -> Lie:
    """The first exchange of a new run."""
    config = open_run(audited, place / "run")
    return Lie(audited, config, SecureClients(config, "faces", len(audited.shared), audited.frozen), 1, shares=shares)


def honestly(lie: Lie, stage: str, names: list[str]) -> Iterator[str]:
    """Everybody is heard until that stage is open; a line where somebody is silent, which proves nothing then."""
    for each in STAGES[: STAGES.index(stage)]:
        if len(answered := lie.ask()) < len(names):
            yield f"{len(names) - len(answered)} clients did not answer {each} before any lie, so nothing was tried"


def check_bad_client(audited: Round, outcome: Outcome) -> None:
    """Without noise: the first client sends a long update beside no weight, a weight that takes the others' away, and
    both. All is within what the server looks at besides."""
    names, clip_norm = sorted(audited.updates), fixed_clip_norm(audited.config)
    codec = make_codec(settings_for(audited, Path("unused")), len(audited.shared))
    summed, weights = clear_sum(audited, names[1:])
    length = float(np.linalg.norm(summed))
    # Longer than the weights are together, and no longer than so many honest clients' could be.
    wanted = (weights + len(names)) / 2
    rng = np.random.default_rng(0)
    across = rng.choice([-1.0, 1.0], len(summed))
    across -= summed * (across @ summed) / max(length, 1e-300) ** 2
    across *= np.sqrt(max(wanted**2 - length**2, 0.0)) / np.linalg.norm(across)
    left = length / 10
    lies = {
        "a long update beside no weight": (across, 0.0),
        "a weight that takes the others' away": (np.zeros_like(across), left - weights),
        "a long update and a weight that takes the others' away": (across, left - weights),
    }
    moved = []
    for what, (update, weight) in lies.items():
        values = np.concatenate([codec.zoom * update, [weight, 0.0]])
        vector = to_ring(to_integers(values, codec.scale, rng))
        exchange = run_exchange(audited, bad={names[0]: vector})
        if exchange.update is None:
            moved.append(0.0)
            continue
        moved.append(float(np.linalg.norm(exchange.update)) / clip_norm)
        if not moved[-1] <= 1.001:
            outcome.broken.append(
                f"one bad client moves the average by more than the clip norm: {moved[-1]:.3g} times, with {what}"
            )
    outcome.figures.append(
        Figure("average that one bad client makes, in clip norms, at most", float(np.max(moved)), claim=1.0)
    )
