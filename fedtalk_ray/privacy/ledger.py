"""What a run has spent, on disk: one charge for every exchange whose masked inputs arrived.

Guarantee, to the clients: a charge is on disk before anything that it pays for can be opened, and stays there whatever
dies when; the same exchange is never charged twice. A charge is kept although its round may be aborted or thrown away
after: who saw the masked inputs cannot unsee them. The ledger lies beside the checkpoints and is not rolled back with
them.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedtalk_ray.errors import RunError
from fedtalk_ray.outputs import write_synced
from fedtalk_ray.privacy.accounting import Noise, Rounds, epsilon, epsilon_bound, merged


@dataclass(frozen=True)
class Charge:
    """exchange: its number, the key. rate: the probability with which a client was in the cohort. clients: who was."""

    exchange: int
    round: int
    noise: Noise
    rate: float
    clients: tuple[str, ...]


@dataclass(frozen=True)
class Spent:
    """Epsilon at `delta`: to whoever sees the models (release) and to whoever knows the cohorts (server).

    The bounds are those by Renyi divergence, looser ones. rounds: charges.
    participations: the most rounds that any client took part in.
    """

    delta: float
    release: float
    server: float
    release_bound: float
    server_bound: float
    rounds: int
    participations: int


class Ledger:
    """The charges in a file."""

    def __init__(self, path: Path) -> None:
        """Raises `RunError` for a damaged file: a run that does not know what it spent must not go on."""
        self._path = path
        self._charges: dict[int, Charge] = {}
        # As they stand in the file, which is written anew with every charge.
        self._entries: list[str] = []
        self._told: tuple[Any, Spent] | None = None
        if not self._path.exists():
            return
        try:
            for entry in json.loads(self._path.read_text()):
                noise = Noise(**entry.pop("noise"))
                charge = Charge(**entry | {"noise": noise, "clients": tuple(entry["clients"])})
                self._charges[charge.exchange] = charge
            self._entries = [encoded(charge) for charge in self._charges.values()]
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"ledger {self._path} is damaged ({error}); without it nothing can be trained on") from error

    @property
    def charges(self) -> list[Charge]:
        return list(self._charges.values())

    def charge(self, charge: Charge) -> None:
        """Writes one charge to disk, and returns when it is there. Repeating it changes nothing."""
        if charge.exchange in self._charges:
            return
        entries = [*self._entries, encoded(charge)]
        write_synced(self._path, f"[{', '.join(entries)}]")
        self._charges[charge.exchange], self._entries = charge, entries

    def participations(self) -> Counter[str]:
        """In how many charged rounds each client was."""
        return Counter(client for charge in self._charges.values() for client in charge.clients)

    def spent(self, delta: float, cap: int | None = None, more: Charge | None = None) -> Spent:
        """What all charges cost together, and `more` with them where it is given.

        cap: the rounds that a client takes part in at most, whatever comes (`privacy.participation_cap`).
        """
        charges = [*self._charges.values(), *([more] if more else [])]
        release = merged([Rounds(charge.noise, charge.rate, 1) for charge in charges])
        servers, most = histories(charges)
        # Where somebody was in more, as after a round that was lost and taken up again, that many count.
        seldom = None if cap is None else max(cap, most)
        asked = (delta, release, servers, most, seldom)
        if self._told is None or self._told[0] != asked:
            # The same is asked before a round and after it, and takes up to a second.
            self._told = asked, self._account(delta, release, servers, len(charges), most, seldom)
        return self._told[1]

    def _account(
        self,
        delta: float,
        release: list[Rounds],
        servers: list[list[Rounds]],
        rounds: int,
        most: int,
        seldom: int | None,
    ) -> Spent:
        # Nobody is in more than all of the rounds, nor in more than `seldom`, whatever the figure for sampled ones is.
        ways = [release, merged([Rounds(part.noise, 1.0, part.count) for part in release])]
        if seldom is not None and release:
            ways.append([Rounds(worst([part.noise for part in release]), 1.0, seldom)])
        return Spent(
            delta,
            min(epsilon(way, delta) for way in ways),
            max((epsilon(server, delta) for server in servers), default=0.0),
            min(epsilon_bound(way, delta) for way in ways) if release else 0.0,
            max((epsilon_bound(server, delta) for server in servers), default=0.0),
            rounds,
            most,
        )


def worst(noises: list[Noise]) -> Noise:
    """Noise that costs as much as any of these, or more: less of it, coarser steps and more values all cost more."""
    return Noise(
        "skellam" if any(noise.kind == "skellam" for noise in noises) else "gaussian",
        min(noise.multiplier for noise in noises),
        min(noise.sensitivity for noise in noises),
        max(noise.dimension for noise in noises),
    )


def histories(charges: list[Charge]) -> tuple[list[list[Rounds]], int]:
    """The clients' rounds, unsampled, of all who may have spent most, and the most rounds that any client was in.

    Equal ones are told once, and left out where another client was in as many rounds of each noise and in more of one.
    """
    counts: dict[Noise, Counter[str]] = {}
    for charge in charges:
        counts.setdefault(charge.noise, Counter()).update(charge.clients)
    names = set[str]().union(*counts.values())
    found = {tuple(count[name] for count in counts.values()) for name in names}
    # Whoever was in more rounds comes first, so that no later one can be more than an earlier one.
    ordered = sorted(found, key=lambda history: (sum(history), history), reverse=True)
    kept = np.empty((0, len(counts)), int)
    for history in ordered:
        if not (kept >= history).all(axis=1).any():
            kept = np.vstack([kept, history])
    most = sum(ordered[0]) if ordered else 0
    parts = [
        [Rounds(noise, 1.0, int(count)) for noise, count in zip(counts, history, strict=True) if count]
        for history in kept
    ]
    return parts, most


def encoded(charge: Charge) -> str:
    """A charge as JSON."""
    # Not `asdict`, which copies every client's name.
    return json.dumps(vars(charge) | {"noise": vars(charge.noise)})
