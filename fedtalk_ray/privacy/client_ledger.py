"""What a client has spent, on its own disk, and the most that it agreed to: in its run, or over all runs.

Guarantee, to the client: before a masked update leaves, what it costs is on disk, and it does not leave where that is
more than was agreed; whichever server asks, in whichever run, with whatever it says of the past, from however many
processes at once, and whatever is killed when. What is written only grows, and no round of a run is charged twice. A
file that cannot be read, or that knows of fewer rounds of a run than the client's record says it charged
(`client_record`), or of fewer rounds in all than the count beside it, ends the client's part.

Epsilon is the server view's: whoever asks for an update knows that this client is there, so nothing is amplified.
That a server adds central noise (`mechanism: gaussian`) is its word, which nobody can check.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

from fedtalk_ray.outputs import alone, read_own, write_synced
from fedtalk_ray.privacy.accounting import Kind, Noise, Rounds, epsilon, merged
from fedtalk_ray.privacy.protocol import Aborted, Code


@dataclass(frozen=True)
class Agreement:
    """The most that a client spends over all runs: epsilon at `delta`, and rounds; and rounds of one run. None: any
    number."""

    epsilon: float | None = None
    rounds: int | None = None
    delta: float = 1e-5
    rounds_of_a_run: int | None = None


@dataclass
class Spent:
    """rounds: by run. noise: how often each kind of noise was in a sum. bare: rounds without any. last: the number of
    the last round that was charged, by run."""

    rounds: dict[str, int] = field(default_factory=dict)
    noise: list[tuple[Noise, int]] = field(default_factory=list)
    bare: int = 0
    last: dict[str, int] = field(default_factory=dict)

    def epsilon(self, delta: float) -> float:
        """0 before the first round, infinite after one without noise."""
        if self.bare:
            return float("inf")
        return epsilon(merged([Rounds(noise, 1.0, count) for noise, count in self.noise]), delta)

    def and_one(self, run: str, number: int, noise: Noise | None) -> "Spent":
        """This and one more round, of that number."""
        counts = dict(self.noise)
        if noise is not None:
            counts[noise] = counts.get(noise, 0) + 1
        rounds = self.rounds | {run: self.rounds.get(run, 0) + 1}
        return Spent(rounds, list(counts.items()), self.bare + (noise is None), self.last | {run: number})


class ClientLedger:
    """One client's, in a file; where that outlives runs, the number of all rounds is kept in a second one beside it."""

    def __init__(self, path: Path, one_run: bool = False) -> None:
        """one_run: whether it is of one run, in which the client's record knows how many rounds there are."""
        self._path, self._count, self._one_run = path, path.with_suffix(".rounds"), one_run

    def read(self) -> Spent:
        """As it stands. Raises `Aborted` for a damaged file, and for one that is gone or older than the count says."""
        # The count first: who charges at the same time writes it last.
        try:
            counted = int(read_own(self._count)) if not self._one_run else 0
        except FileNotFoundError:
            counted = 0
        except (OSError, ValueError) as error:
            raise Aborted(Code.RECORD_DAMAGED, f"{self._count} cannot be read ({error!r})") from error
        spent = self._written()
        if (there := sum(spent.rounds.values())) < counted:
            raise Aborted(
                Code.RECORD_DAMAGED,
                f"{self._path} knows {there} rounds, and the client was charged {counted}: it is gone, or an older one "
                "was put back",
            )
        return spent

    def _written(self) -> Spent:
        try:
            found = json.loads(read_own(self._path))
            noise = [(Noise(**each), int(count)) for each, count in found["noise"]]
            rounds = {str(run): int(count) for run, count in found["rounds"].items()}
            last = {str(run): int(number) for run, number in found["last"].items()}
            spent = Spent(rounds, noise, int(found["bare"]), last)
            if rounds.keys() != last.keys() or (self._one_run and len(rounds) > 1):
                raise ValueError("its runs are not those that it may have")
            for each, _ in noise:
                sound = each.multiplier > 0 and each.sensitivity > 0 and each.dimension > 0
                if each.kind not in get_args(Kind) or not sound:
                    raise ValueError(f"{each} is no noise")
            if sum(rounds.values()) != spent.bare + sum(count for _, count in noise):
                raise ValueError("its rounds by run are not as many as those by noise")
            return spent
        except FileNotFoundError:
            return Spent()
        except (OSError, ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:
            raise Aborted(
                Code.RECORD_DAMAGED, f"{self._path} cannot be read ({error!r}), and tells what this client spent"
            ) from error

    def with_one_more(self, run: str, number: int, before: int, noise: Noise | None, agreement: Agreement) -> Spent:
        """What would be spent after a run's round of that number. before: of this run the client's record says that so
        many were charged. noise: None for a sum without any.

        Raises `Aborted` where that is more than was agreed, where this file knows of fewer rounds than `before`, and
        for a round no later than one that was charged: it was answered, whatever the record says, or the client was
        killed before it could be, and sits it out.
        """
        spent = self.read()
        known = spent.rounds.get(run, 0)
        if self._one_run and spent.rounds.keys() - {run}:
            raise Aborted(Code.RECORD_DAMAGED, f"{self._path} is of a run of another name than the roster's")
        if known < before:
            raise Aborted(
                Code.RECORD_DAMAGED,
                f"{self._path} knows {known} rounds of a run of which the client charged {before}: an older file was "
                "put back, or agreement.ledgers names another folder than before",
            )
        if number <= spent.last.get(run, 0):
            raise Aborted(Code.OLD_ROUND, f"round {number} is charged already in {self._path}")
        if agreement.rounds_of_a_run is not None and known >= agreement.rounds_of_a_run:
            raise Aborted(Code.CAP_REACHED)
        after = spent.and_one(run, number, noise)
        check(after, agreement)
        return after

    def charge(self, run: str, number: int, before: int, noise: Noise | None, agreement: Agreement) -> int:
        """Writes down what `with_one_more` gives; returns how many rounds of the run are charged then."""
        with alone(self._path):
            after = self.with_one_more(run, number, before, noise, agreement)
            tree = {
                "rounds": after.rounds,
                "last": after.last,
                "noise": [[asdict(each), count] for each, count in after.noise],
                "bare": after.bare,
            }
            write_synced(self._path, json.dumps(tree))
            if not self._one_run:
                write_synced(self._count, str(sum(after.rounds.values())))
        return after.rounds[run]


def check(spent: Spent, agreement: Agreement) -> None:
    """Raises `Aborted` where more would be spent than was agreed."""
    rounds = sum(spent.rounds.values())
    if agreement.rounds is not None and rounds > agreement.rounds:
        raise Aborted(Code.NOT_AGREED, f"round {rounds} over all runs, and {agreement.rounds} were agreed to")
    if agreement.epsilon is not None and (reached := spent.epsilon(agreement.delta)) > agreement.epsilon:
        raise Aborted(Code.NOT_AGREED, f"epsilon {reached:.3g} over all runs, and {agreement.epsilon:g} was agreed to")
