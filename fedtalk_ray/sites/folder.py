"""SITE/: all that a site keeps, on its own machine, for its owner alone.

    SITE/site.json           its name, the coordinator's address, its request for membership
    SITE/site.key            Ed25519: who it is
    SITE/authority.pem       who decides who belongs
    SITE/members             the newest list of members that it saw
    SITE/shards/             its clips, prepared
    SITE/models/HASH/        models that runs start from, by what is in them
    SITE/ledger/NAME.json    what it has spent over all runs (`privacy.client_ledger`)
    SITE/runs/RUN/           one run's folder, and beside it RUN.clients/NAME, what the protocol keeps (`runs.folder`)
    SITE/runs/RUN/pipeline/  the model that the run released

Nothing of it is ever sent but public keys and what the protocol makes.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedtalk_ray.enrolment.certificates import read_authority
from fedtalk_ray.enrolment.invite import Invite, request_of
from fedtalk_ray.enrolment.membership import EnrolmentError, Membership, later
from fedtalk_ray.errors import RunError
from fedtalk_ray.outputs import new_folder, read_own, write_synced
from fedtalk_ray.privacy.client_record import ClientRecord
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.runs.folder import RunFolder


@dataclass(frozen=True)
class SiteFolder:
    """Where everything of one site lies."""

    path: Path

    @classmethod
    def create(cls, path: Path, invite: Invite, address: str, authority: bytes) -> "SiteFolder":
        """A new site: makes its key and its request. authority: the certificate, PEM, that the invite names.

        Raises `OutputError` for a folder that is in use.
        """
        with new_folder(path) as place:
            place.chmod(0o700)
            made, key = cls(place), SigningKey.generate()
            write_synced(made.key_file, key.secret)
            write_synced(made.authority, authority)
            known = {"name": invite.name, "address": address, "request": request_of(invite, key).hex()}
            write_synced(made._file, json.dumps(known))
        return cls(path)

    def exists(self) -> bool:
        return self._file.is_file()

    @property
    def _file(self) -> Path:
        return self.path / "site.json"

    @property
    def key_file(self) -> Path:
        return self.path / "site.key"

    @property
    def authority(self) -> Path:
        return self.path / "authority.pem"

    @property
    def members(self) -> Path:
        return self.path / "members"

    @property
    def shards(self) -> Path:
        return self.path / "shards"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def ledgers(self) -> Path:
        return self.path / "ledger"

    @property
    def name(self) -> str:
        return self._known("name")

    @property
    def address(self) -> str:
        return self._known("address")

    @property
    def request(self) -> bytes:
        return bytes.fromhex(self._known("request"))

    @property
    def key(self) -> SigningKey:
        return SigningKey.read_from(self.key_file)

    @property
    def authority_key(self) -> bytes:
        """The authority's public key, 32 bytes."""
        return read_authority(self.authority.read_bytes())[1]

    def take_members(self, found: bytes) -> Membership:
        """Keeps a newer list of members. Raises `EnrolmentError` for an older one, or one of another authority."""
        seen = self.members.read_bytes() if self.members.exists() else None
        membership = later(seen, found, self.authority_key)
        if found != seen:
            write_synced(self.members, found)
        return membership

    def run(self, name: str) -> RunFolder:
        """A run's folder, with what the protocol keeps of this site in it. name: the run's random one, hex."""
        if not name.isalnum():
            raise EnrolmentError(f"the coordinator names its run {name!r}, which cannot be a folder's name")
        run = RunFolder(self.path / "runs" / name)
        run.path.mkdir(parents=True, exist_ok=True)
        run.clients_folder.mkdir(mode=0o700, exist_ok=True)
        own = run.client(self.name)
        if not own.signing_key.exists():
            # The record comes first: whoever has a key must find what it answered.
            ClientRecord(own.protocol_state).create()
            write_synced(own.signing_key, self.key.secret)
        return run

    def runs(self) -> list[RunFolder]:
        """The runs that it was asked for."""
        folder = self.path / "runs"
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        return [RunFolder(place) for place in found if place.is_dir() and not place.name.endswith(".clients")]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process runs this site. Raises `RunError` where one does."""
        with open(os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o600), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"site {self.path} is at work in another process; stop that one first") from error
            yield

    def _known(self, what: str) -> str:
        try:
            return str(json.loads(read_own(self._file))[what])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self._file} is damaged ({error}); put it back, or join anew with another invite"
            ) from error
