"""What a client keeps for itself in a run, on the client's side of the disk.

    RUN.clients/<client>/identity/           its own adapter, a PEFT folder, the newest; where it was personalised,
                                             own_hearing.safetensors in it is what sounds mean for its lips, and
                                             own_mouth.safetensors the mouths of its own frames
    RUN.clients/<client>/identity.previous/  the one before; identity.oldest/ the one before that
    RUN.clients/<client>/signing.key         Ed25519, for its owner only
    RUN.clients/<client>/protocol.json       what it has seen of the secure protocol
    RUN.clients/<client>/ledger.json         what it has spent in this run (`agreement.ledgers`: or over all, elsewhere)
    RUN.clients/<client>/samples/            videos that show its face
    RUN.clients/<client>/audit/              pictures that an attack recovered of it
    RUN.clients/<client>/clips/  shards/     of who was personalised by the page: what was given, and prepared
    RUN.clients/<client>/consent.json        what was agreed to, and when

RUN.clients can be entered by its owner alone. `state.json` in each adapter's folder says after which round it was
written, and in how many rounds the client took part. A run that died in the middle of a round has newer adapters than
its checkpoint: asking for the one *before* a round finds the right one, and resuming repeats the round exactly.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedtalk_ray.errors import RunError
from fedtalk_ray.outputs import new_folder

_NEWEST, _PREVIOUS, _OLDEST = "identity", "identity.previous", "identity.oldest"
_STATE = "state.json"


@dataclass(frozen=True)
class ClientFolder:
    """Where everything of one client lies."""

    path: Path

    @property
    def newest_adapter(self) -> Path:
        return self.path / _NEWEST

    @property
    def signing_key(self) -> Path:
        return self.path / "signing.key"

    @property
    def protocol_state(self) -> Path:
        return self.path / "protocol.json"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.json"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def audit(self) -> Path:
        return self.path / "audit"

    @property
    def clips(self) -> Path:
        return self.path / "clips"

    @property
    def shards(self) -> Path:
        return self.path / "shards"

    @property
    def consent(self) -> Path:
        return self.path / "consent.json"

    def adapters(self) -> list[Path]:
        """The adapters that are kept, the newest first."""
        places = [self.path / name for name in (_NEWEST, _PREVIOUS, _OLDEST)]
        return [place for place in places if place.is_dir()]

    def adapter_before(self, round_number: int) -> Path | None:
        """The newest adapter that was written before a round; None for a client that is new by then."""
        written = {place: self.written_after(place) for place in self.adapters()}
        # Not the first: whoever was personalised beside an older released model has newer ones behind.
        known = {place: after for place, after in written.items() if after is not None and after < round_number}
        return max(known, key=lambda place: known[place], default=None)

    def keep_adapter(self, round_number: int, write: Callable[[Path], None], took_part: bool = True) -> Path:
        """Makes `write(folder)` the newest adapter, as it is after a round; returns its folder.

        took_part: whether the round counts as one in which the client took part.
        """
        if not self.path.parent.exists():
            # Of a run that came without its clients.
            self.path.parent.mkdir(mode=0o700, parents=True)
        new = self.path / f"{_NEWEST}.new"
        with new_folder(new, overwrite=True) as place:
            write(place)
            before = self.adapter_before(round_number if took_part else round_number + 1)
            if before is None and not took_part:
                before = next(iter(self.adapters()), None)
            taken = (self.participations(before) if before else 0) + took_part
            (place / _STATE).write_text(json.dumps({"round": round_number, "participations": taken}))
        newest, previous, oldest = self.newest_adapter, self.path / _PREVIOUS, self.path / _OLDEST
        if self.written_after(newest) not in (None, round_number):
            shutil.rmtree(oldest, ignore_errors=True)
            if previous.exists():
                previous.rename(oldest)
            newest.rename(previous)
        else:
            shutil.rmtree(newest, ignore_errors=True)
        new.rename(newest)
        return newest

    @staticmethod
    def written_after(adapter: Path) -> int | None:
        """The round after which an adapter was written, None for one that no run wrote. Raises `RunError`."""
        return _state(adapter, "round")

    @staticmethod
    def participations(adapter: Path) -> int:
        """Rounds that the client had taken part in by then; 0 where that is not known."""
        return _state(adapter, "participations") or 0


def _state(adapter: Path, key: str) -> int | None:
    if not (adapter / _STATE).exists():
        return None
    try:
        found = json.loads((adapter / _STATE).read_text()).get(key)
        return None if found is None else int(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{adapter / _STATE} is damaged ({error}); remove {adapter} to go without it") from error
