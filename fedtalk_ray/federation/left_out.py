"""Whom the server leaves out of cohorts because of what they did to the protocol (`privacy.faults`).

A proven fault ends a client's part in the run. Who is only suspected, since a round was lost in which it fell silent
or did not answer complaints, sits out the next 1, 2, 4, ... rounds, twice as many each time: so a client that spoils
rounds by silence or by its shares spoils few more than the logarithm of their number, and no more of others' budgets.
An honest one, with whom no fault is ever proven, is never out for good. It is out for a while only after a round that
others lost and in which it was silent, cut off or abstaining: the server cannot tell these from silence. Cohorts stay
as large as they were: of a population that is no larger than a cohort nobody sits out who is only suspected.

Not covered: a client that keeps to the protocol and masks a vector that no honest one has. Its sum is thrown away, and
nobody can see whose it was.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fedtalk_ray.errors import RunError
from fedtalk_ray.outputs import write_synced
from fedtalk_ray.privacy.faults import PROVEN, Fault


@dataclass(frozen=True)
class Absence:
    """until: the last round that it sits out; None for all. times: how often it was left out. why: its last fault."""

    until: int | None
    times: int
    why: str


class LeftOut:
    """In a file beside the ledger."""

    def __init__(self, path: Path) -> None:
        """Raises `RunError` for a damaged file."""
        self._path = path
        try:
            found = json.loads(path.read_text()) if path.exists() else {}
            self._absences = {str(client): Absence(**absence) for client, absence in found.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is damaged ({error}); it says who is left out of rounds, and why") from error

    def after(self, round_number: int, found: Mapping[str, Fault], lost: bool) -> None:
        """Takes down what a round left behind. lost: whether it was given up; else only what is proven counts."""
        absences = dict(self._absences)
        for client, fault in found.items():
            before = absences.get(client, Absence(0, 0, ""))
            if before.until is None:
                continue
            times = before.times + 1
            if fault in PROVEN:
                absences[client] = Absence(None, times, fault)
            elif lost and before.until <= round_number:
                absences[client] = Absence(round_number + 2 ** (times - 1), times, fault)
        if absences != self._absences:
            write_synced(self._path, json.dumps({client: asdict(each) for client, each in absences.items()}, indent=1))
            self._absences = absences

    def of(self, round_number: int, spare: int) -> list[str]:
        """Who sits out a round, sorted. spare: how many are not needed for a cohort; only so many suspected ones sit
        out, those first who were left out most often."""
        suspected = [client for client, each in self._absences.items() if (each.until or 0) >= round_number]
        suspected.sort(key=lambda client: -self._absences[client].times)
        gone = self.for_good()
        return sorted([*gone, *suspected[: max(spare - len(gone), 0)]])

    def for_good(self) -> tuple[str, ...]:
        """Who takes no part any more, sorted."""
        return tuple(sorted(client for client, each in self._absences.items() if each.until is None))
