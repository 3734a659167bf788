"""RUN/roster.jsonl: everybody's long-term public key, a file that only ever grows.

    {"run": "<random name of the run>", "server": "<Ed25519 public key, hex>"}
    {"client": "s1", "key": "<Ed25519 public key, hex>"}

Clients are enrolled when they take part for the first time, so that a population of any size costs nothing to open. A
client keeps the length and the hash of what it saw at its last exchange (`Pin`) and refuses a file that does not begin
with just that: nobody's key can be exchanged for another one afterwards. It does trust the file for whom it never met.

Of sites the authority's list of members stands in its place (`SignedRoster`, `enrolment.membership`): whom it names is
nobody's word but the authority's, and a client that saw one number goes back to no lower one.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedtalk_ray.enrolment.membership import EnrolmentError, open_membership
from fedtalk_ray.errors import RunError
from fedtalk_ray.outputs import new_file, write_synced, writing
from fedtalk_ray.privacy.keys import Roster
from fedtalk_ray.runs.folder import RunFolder


@dataclass(frozen=True)
class Pin:
    """The beginning of a roster: so many bytes with this SHA-256. Of a signed list its number, and its SHA-256."""

    length: int
    digest: str


@dataclass
class RosterFile:
    """Reads the file, and the lines that are new at every later call."""

    path: Path
    _data: bytes = b""
    _run: str = ""
    _server: bytes = b""
    _clients: dict[str, bytes] = field(default_factory=dict)
    _digests: dict[int, str] = field(default_factory=dict)

    def read(self) -> tuple[Roster, str]:
        """The roster and the run's name. Raises `RunError` for a missing or damaged file."""
        try:
            data = whole_lines(self.path.read_bytes())
            if not data.startswith(self._data) or not self._data:
                self._data, self._clients, self._digests = b"", {}, {}
                first = json.loads(data.splitlines()[0])
                self._run, self._server = str(first["run"]), bytes.fromhex(first["server"])
            begin = len(self._data) or data.index(b"\n") + 1
            for line in data[begin:].splitlines():
                entry = json.loads(line)
                if entry["client"] in self._clients:
                    raise ValueError(f"client {entry['client']} has two keys")
                self._clients[str(entry["client"])] = bytes.fromhex(entry["key"])
            self._data = data
            return Roster(dict(self._clients), self._server), self._run
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise RunError(
                f"roster {self.path} cannot be read ({error}); it is written while the run goes on"
            ) from error

    def pin(self) -> Pin:
        """What a client keeps of the file as it was last read."""
        return Pin(len(self._data), self._digest(len(self._data)))

    def keeps(self, pin: Pin) -> bool:
        """Whether the file as it was last read begins with what was pinned."""
        return pin.length <= len(self._data) and self._digest(pin.length) == pin.digest

    def _digest(self, length: int) -> str:
        if length not in self._digests:
            self._digests[length] = hashlib.sha256(memoryview(self._data)[:length]).hexdigest()
        return self._digests[length]


@dataclass
class SignedRoster:
    """The members as the authority signed them (`RunFolder.members`), read anew at every call."""

    run: RunFolder
    _pin: Pin | None = None

    @property
    def path(self) -> Path:
        return self.run.members

    def read(self) -> tuple[Roster, str]:
        """The roster and the run's name. Raises `RunError` for a missing or damaged file, and for a list that the
        authority did not sign."""
        try:
            head = json.loads(self.run.federation.read_text())
            signed = self.path.read_bytes()
            membership = open_membership(signed, bytes.fromhex(head["authority"]))
            self._pin = Pin(membership.version, hashlib.sha256(signed).hexdigest())
            return membership.roster(), str(head["run"])
        except (OSError, ValueError, KeyError, TypeError, EnrolmentError) as error:
            raise RunError(f"the members in {self.path} cannot be read ({error})") from error

    def name(self) -> str:
        """The run's. Raises as `read`."""
        return self.read()[1]

    def pin(self) -> Pin:
        """What a client keeps of the list as it was last read."""
        assert self._pin is not None, "read first"
        return self._pin

    def keeps(self, pin: Pin) -> bool:
        """Whether the list as it was last read is the one that was pinned, or a later one."""
        return self.pin().length > pin.length or self.pin() == pin


def roster_of(run: RunFolder) -> RosterFile | SignedRoster:
    """The run's roster: the one that its clients' authority signed, where they are sites."""
    return SignedRoster(run) if run.federation.exists() else RosterFile(run.roster)


def found_federation(run: RunFolder, name: str, nonce: bytes, authority: bytes, members: bytes) -> None:
    """Makes a run's clients sites. name, nonce: the run's (`coordinator.offer`). authority: its public key. members:
    the signed list."""
    write_synced(run.members, members)
    write_synced(run.federation, json.dumps({"run": name, "nonce": nonce.hex(), "authority": authority.hex()}))


def nonce_of(run: RunFolder) -> bytes:
    """What makes a run's name its own. Raises `RunError` for a damaged file."""
    try:
        return bytes.fromhex(json.loads(run.federation.read_text())["nonce"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{run.federation} is damaged ({error}); put it back") from error


def extend_roster(path: Path, server: bytes, keys: Mapping[str, bytes]) -> None:
    """Adds clients' public keys at the end; makes the file, and the run's random name, at the first call."""
    lines = "".join(json.dumps({"client": name, "key": key.hex()}) + "\n" for name, key in sorted(keys.items()))
    if not path.is_file():
        head = json.dumps({"run": secrets.token_hex(16), "server": server.hex()}) + "\n"
        with new_file(path) as place:
            place.write_text(head + lines)
        return
    with writing(path), open(path, "r+b") as file:
        # A line that a killed driver left half written was never read by anybody.
        file.truncate(len(whole_lines(file.read())))
        file.seek(0, 2)
        file.write(lines.encode())


def whole_lines(data: bytes) -> bytes:
    """`data` up to its last line break."""
    return data[: data.rfind(b"\n") + 1]
