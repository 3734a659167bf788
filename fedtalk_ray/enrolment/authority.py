"""The authority: whoever decides who belongs, with a key that is never on the coordinator's machine.

    AUTH/authority.key     Ed25519: signs lists of members and the coordinator's certificate
    AUTH/authority.pem     its own certificate, which every code of an invite names
    AUTH/authority.json    the invites by their public keys, the members, who was given a token, how many lists were
                           signed
    AUTH/coordinator/      what the coordinator is given (`coordinator_files`), and nothing of the above but the .pem

Everything is for its owner alone. The folder needs no network: requests and the list of members are files.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path

from fedtalk_ray.enrolment.certificates import authority_certificate, read_authority, server_certificate
from fedtalk_ray.enrolment.coordinator_files import CoordinatorFiles
from fedtalk_ray.enrolment.invite import Invite, read_request
from fedtalk_ray.enrolment.membership import EnrolmentError, Member, Membership, check_name, seal_membership
from fedtalk_ray.enrolment.token import Token
from fedtalk_ray.outputs import OutputError, alone, new_folder, read_own, write_synced
from fedtalk_ray.privacy.keys import SigningKey

INVITE_DAYS, MEMBER_DAYS = 14, 365


@dataclass
class _Invited:
    """invite: its public key, hex. until: the last day on which the code is taken. key: whom it let in, hex; empty
    while unused."""

    invite: str
    until: str
    key: str = ""


@dataclass
class _State:
    version: int = 0
    members: dict[str, tuple[str, str]] = field(default_factory=dict)
    """name -> its key in hex, and the last day."""
    revoked: list[str] = field(default_factory=list)
    invites: dict[str, _Invited] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    """name -> the last day, of all that were ever printed. A name has one token or is a site's, and is not given twice:
    that it was revoked is said of names."""


@dataclass(frozen=True)
class Decision:
    """What became of one request. refused: why it was not granted; empty where it was."""

    name: str
    key: str
    refused: str = ""


class Authority:
    """One authority's folder."""

    def __init__(self, folder: str | Path) -> None:
        """Raises `EnrolmentError` for a folder that `create` did not make, `RunError` for a damaged key."""
        self._folder = Path(folder)
        if not self._file.is_file():
            raise EnrolmentError(f"{folder} is no authority's folder; `fedtalk authority init {folder}` makes one")
        self._key = SigningKey.read_from(self._folder / "authority.key")
        self.coordinator = CoordinatorFiles(self._folder / "coordinator")

    @classmethod
    def create(cls, folder: str | Path, hosts: Sequence[str]) -> "Authority":
        """A new authority, and the files of a coordinator at these host names or addresses. Raises `OutputError` for a
        folder that is in use, `EnrolmentError` for what is no host."""
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} already exists; an authority is made in a new folder")
        if not hosts:
            raise EnrolmentError("--host is missing: the name or address by which sites reach the coordinator")
        with new_folder(folder) as place:
            place.chmod(0o700)
            key = SigningKey.generate()
            write_synced(place / "authority.key", key.secret)
            write_synced(place / "authority.pem", authority_certificate(key))
            write_synced(place / "authority.json", json.dumps(asdict(_State())))
            files = CoordinatorFiles(place / "coordinator")
            files.folder.mkdir(mode=0o700)
            write_synced(files.authority, (place / "authority.pem").read_bytes())
            write_synced(files.server_key, SigningKey.generate().secret)
            made = cls(place)
            made.certify(hosts)
            made._publish(_State())
        return cls(folder)

    @property
    def _file(self) -> Path:
        return self._folder / "authority.json"

    def certify(self, hosts: Sequence[str]) -> None:
        """Gives the coordinator a new certificate for these host names or addresses. Raises `EnrolmentError`."""
        key, certificate = server_certificate(self._key, hosts)
        write_synced(self.coordinator.tls_key, key)
        write_synced(self.coordinator.tls_certificate, certificate)

    def members(self) -> Membership:
        return self._membership(self._read())

    def invite(self, name: str, days: int = INVITE_DAYS, new_key: bool = False) -> Invite:
        """A code for one site, in place of the one it had. days: how long it is taken. new_key: for a member that lost
        its key: the request that is made with this code puts a new one in its place.

        Raises `EnrolmentError` for a name that cannot be one, and for a member's without `new_key`.
        """
        certificate, _ = read_authority((self._folder / "authority.pem").read_bytes())
        with alone(self._file):
            state = self._read()
            state.members = _still_members(state)
            if name in state.tokens:
                raise EnrolmentError(f"{name} is the name of a token; take another one for a site")
            if (check_name(name) in state.members) != new_key:
                raise EnrolmentError(
                    f"{name} is a member already; --new-key lets it come with another key"
                    if not new_key
                    else f"{name} is no member, so it has no key to replace; leave out --new-key"
                )
            invite = Invite.new(name, certificate, _day(days), self._key)
            state.invites[name] = _Invited(invite.key.public.hex(), invite.until)
            self._write(state)
        return invite

    def token(self, name: str, days: int = INVITE_DAYS) -> Token:
        """A token for so many days. Raises `EnrolmentError` for a name that was given to somebody before."""
        certificate, _ = read_authority((self._folder / "authority.pem").read_bytes())
        with alone(self._file):
            state = self._read()
            if check_name(name) in {*state.members, *state.invites, *state.revoked, *state.tokens}:
                raise EnrolmentError(f"{name} was given to somebody before; take a new name for each token")
            token = Token.new(name, certificate, _day(days), self._key)
            state.tokens[name] = token.until
            self._write(state)
        return token

    def sign(self, requests: Iterable[bytes], days: int = MEMBER_DAYS) -> list[Decision]:
        """Makes members of those whose requests show an invite's code, and signs the list anew where it changed.

        days: how long they are members. A code lets one key in; the same request again is granted again.
        """
        with alone(self._file):
            state = self._read()
            before = json.dumps(asdict(state))
            state.members = _still_members(state)
            requests = list(requests)
            contested = self._contested(state, requests)
            decisions = [self._decide(state, data, days, contested) for data in requests]
            if json.dumps(asdict(state)) != before or self._published() != state.version:
                self._publish(state)
        return decisions

    def revoke(self, name: str) -> None:
        """Takes a member off the list, and its code with it, or ends a token. Raises `EnrolmentError` for who has
        none of these."""
        with alone(self._file):
            state = self._read()
            if name not in {*state.members, *state.invites, *state.revoked, *state.tokens}:
                known = ", ".join(sorted({*state.members, *state.invites, *state.tokens})) or "nobody"
                raise EnrolmentError(f"{name!r} is neither a member nor invited, and has no token; there are: {known}")
            state.invites.pop(name, None)
            if state.members.pop(name, None) or name in state.tokens:
                state.revoked = sorted({*state.revoked, name})
            self._publish(state)

    def _decide(self, state: _State, data: bytes, days: int, contested: set[str]) -> Decision:
        try:
            request = read_request(data, self._key.public)
        except EnrolmentError as error:
            return Decision("?", "", str(error))
        name, key = request.client, request.key.hex()
        invited = state.invites.get(name)
        if invited is None:
            return Decision(name, key, "nobody of that name was invited")
        if invited.invite != request.invite.hex():
            return Decision(name, key, "it has a newer code than the one that it came with")
        if name in contested and not invited.key:
            return Decision(name, key, "two keys came with its code, so somebody else has it: invite it anew")
        if invited.key:
            again = invited.key == key and name in state.members
            return Decision(name, key, "" if again else "its code was used already")
        if invited.until < date.today().isoformat():
            return Decision(name, key, f"its code ran out on {invited.until}")
        if any(key == other for other, _ in state.members.values()):
            return Decision(name, key, "another member has this very key")
        invited.key = key
        state.members[name] = (key, _day(days))
        state.revoked = [other for other in state.revoked if other != name]
        return Decision(name, key)

    def _contested(self, state: _State, requests: Iterable[bytes]) -> set[str]:
        """Whose codes two keys came with."""
        keys: dict[str, set[bytes]] = {}
        for data in requests:
            try:
                request = read_request(data, self._key.public)
                if state.invites[request.client].invite == request.invite.hex():
                    keys.setdefault(request.client, set()).add(request.key)
            except (EnrolmentError, KeyError):
                continue
        return {name for name, found in keys.items() if len(found) > 1}

    def _membership(self, state: _State) -> Membership:
        server = SigningKey.read_from(self.coordinator.server_key).public
        members = tuple(Member(name, bytes.fromhex(key), until) for name, (key, until) in state.members.items())
        return Membership(state.version, server, members, tuple(state.revoked))

    def _publish(self, state: _State) -> None:
        """Signs the list under the next number; that the number is used is on disk first."""
        state.version = max(state.version, self._published()) + 1
        self._write(state)
        write_synced(self.coordinator.members, seal_membership(self._key, self._membership(state)))

    def _published(self) -> int:
        """The number of the list that the coordinator's folder has; 0 for none."""
        try:
            return self.coordinator.membership().version
        except (OSError, EnrolmentError):
            return 0

    def _write(self, state: _State) -> None:
        write_synced(self._file, json.dumps(asdict(state), indent=1))

    def _read(self) -> _State:
        try:
            found = json.loads(read_own(self._file))
            found["invites"] = {name: _Invited(**invited) for name, invited in found["invites"].items()}
            found["members"] = {name: (str(key), str(until)) for name, (key, until) in found["members"].items()}
            return _State(**found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise EnrolmentError(f"{self._file} is damaged ({error}); put its last copy back") from error


def _still_members(state: _State) -> dict[str, tuple[str, str]]:
    today = date.today().isoformat()
    return {name: found for name, found in state.members.items() if found[1] >= today}


def _day(days: int) -> str:
    return (date.today() + timedelta(days=days)).isoformat()
