"""What a client has answered in a run, on its own disk: the last exchange, the last round, how many were charged.

Guarantee, to the client: an exchange, and a round, is answered once, and a round trained from one model, whatever the
server numbers them, whoever asks at the same time in another process, and whatever is killed when: what is written is
on disk before the answer leaves, and numbers only grow. A record that cannot be read, or is gone, ends the client's
part in a run; where an older one was put back, the ledger knows the rounds (`client_ledger`). Each of the two books is
held against the other.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedtalk_ray.outputs import alone, read_own, write_synced
from fedtalk_ray.privacy.protocol import Aborted, Code


@dataclass(frozen=True)
class Answered:
    """exchange: the last one that this client answered. masked: the last round that it sent a masked update of.
    charged: how many rounds of the run its ledger holds. roster: length and SHA-256 of the roster as it saw it then.
    trained: the last round that it trained for, and the SHA-256 of the parameters that it began with."""

    exchange: int = 0
    masked: int = 0
    charged: int = 0
    roster: tuple[int, str] | None = None
    trained: tuple[int, str] | None = None


class ClientRecord:
    """One client's, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> None:
        """Of a client that has answered nothing, before it has a key: whoever has one must find its record."""
        with alone(self._path):
            if not self._path.exists():
                self._write(Answered())

    def read(self) -> Answered:
        """As it stands. Raises `Aborted` for a damaged file, or none: who does not know what it answered must not go
        on."""
        try:
            found = json.loads(read_own(self._path))
            pairs = {name: found.pop(name) for name in ("roster", "trained")}
            counts, digests = zip(*(pair or (0, "") for pair in pairs.values()), strict=True)
            if not all(type(number) is int and number >= 0 for number in (*found.values(), *counts)):
                raise ValueError("its numbers are none")
            if not all(isinstance(digest, str) for digest in digests):
                raise ValueError("its digests are none")
            roster, trained = (tuple(pair) if pair else None for pair in pairs.values())
            return Answered(found.pop("exchange"), found.pop("masked"), found.pop("charged"), roster, trained, **found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise Aborted(
                Code.RECORD_DAMAGED, f"{self._path} cannot be read ({error}), and tells what this client answered"
            ) from error

    def train(self, round_number: int, parameters: str) -> None:
        """Before training for a round, from parameters of that SHA-256. Raises `Aborted` where it was trained for from
        others, or a later one was: whether training goes well tells of the client's clips, and a server that could
        choose the parameters as often as it likes would ask for them bit by bit."""
        with alone(self._path):
            answered = self.read()
            last = answered.trained or (0, "")
            if round_number < last[0] or (round_number == last[0] and parameters != last[1]):
                raise Aborted(Code.OLD_ROUND, f"round {round_number} from another model; trained for round {last[0]}")
            if round_number > last[0]:
                self._write(replace(answered, trained=(round_number, parameters)))

    def begin(self, exchange: int, roster: tuple[int, str]) -> None:
        """Before the first answer of an exchange. Raises `Aborted` where it, or a later one, was answered already."""
        with alone(self._path):
            answered = self.read()
            if exchange <= answered.exchange:
                raise Aborted(Code.OLD_ROUND, f"exchange {exchange}, the last one was {answered.exchange}")
            self._write(replace(answered, exchange=exchange, roster=roster))

    def mask(self, round_number: int, charge: Callable[[int], int]) -> None:
        """Before a masked update leaves. Raises `Aborted` for a round that has one.

        charge: writes the round into the client's ledger, told how many are there by what this record knows, and tells
        how many are there now; called while nobody else can mask the round, and before it is written down here.
        """
        with alone(self._path):
            answered = self.read()
            answered_may_go_on(answered, round_number)
            self._write(replace(answered, masked=round_number, charged=charge(answered.charged)))

    def _write(self, answered: Answered) -> None:
        write_synced(self._path, json.dumps(asdict(answered)))


def answered_may_go_on(answered: Answered, round_number: int) -> None:
    """Raises `Aborted` where a client has answered a round already.

    Two sums over one round, whose survivors differ by one client, would tell that client's update.
    """
    if round_number <= answered.masked:
        raise Aborted(Code.OLD_ROUND, f"round {round_number} has this client's masked update already")
