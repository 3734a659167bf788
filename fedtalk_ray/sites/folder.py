"""SITE/: all that a site keeps, on its own machine, for its owner alone.

    SITE/site.json           its name, the coordinator's address, its request for membership, where its clips are
    SITE/policy.yaml         what it agrees to (`sites.policy`)
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
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedtalk_ray.enrolment.certificates import read_authority
from fedtalk_ray.enrolment.invite import Invite, fingerprint, request_of
from fedtalk_ray.enrolment.membership import EnrolmentError, Membership, later
from fedtalk_ray.errors import RunError
from fedtalk_ray.outputs import OutputError, new_folder, read_own, write_synced
from fedtalk_ray.privacy.client_ledger import ClientLedger
from fedtalk_ray.privacy.client_record import ClientRecord
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.protocol import Aborted
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
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path} already exists and is no site's folder; name another --site")
        with new_folder(path) as place:
            place.chmod(0o700)
            made, key = cls(place), SigningKey.generate()
            write_synced(made.key_file, key.secret)
            write_synced(made.authority, authority)
            known = {"name": invite.name, "address": address, "request": request_of(invite, key).hex()}
            write_synced(made._file, json.dumps(known))
        return cls(path)

    def ask_anew(self, invite: Invite) -> None:
        """Asks for membership by another code, with the ledger and the key that it has, or a new key where it left.

        Raises `EnrolmentError` for an invite of another name or another authority.
        """
        certificate, _ = read_authority(self.authority.read_bytes())
        if invite.name != self.name or invite.authority != fingerprint(certificate):
            raise EnrolmentError(
                f"the invite is for {invite.name}, of this or another authority, and {self.path} is the site of "
                f"{self.name}; name another --site"
            )
        if self.has_left:
            if invite.key.public in self.request:
                raise EnrolmentError(f"the code is the one that {self.name} had before it left; ask for another")
            write_synced(self.key_file, SigningKey.generate().secret)
        request = request_of(invite, self.key)
        # A service gives its code at every start; who was revoked is told so until it has another.
        if request != self.request:
            self.remember(request=request.hex(), waits="yes")

    @property
    def waits(self) -> bool:
        """Whether it asked anew, and was not let in since."""
        return self._all().get("waits") == "yes"

    @property
    def has_left(self) -> bool:
        """Whether its key is gone: nobody can act for it any more."""
        return not self.key_file.exists()

    def leave(self) -> None:
        """Removes its key, its prepared clips and what it fetched to train on. What it has answered and spent stays,
        what it agrees to, and the models and adapters that it can use. Raises `OutputError` for what cannot go."""
        beside = [*self.path.glob(".shards.*"), *self.path.glob("runs/*/.*.part"), *self.path.glob("runs/*/served")]
        for gone in (self.shards, self.models, *beside):
            _remove(gone)
        for run in self.runs():
            _remove(run.client(self.name).signing_key)
        # The last: while it is there it has not left.
        _remove(self.key_file)

    def remember(self, **changes: str) -> None:
        """Writes down what a later start needs: address, request, clips, speech."""
        write_synced(self._file, json.dumps(self._all() | changes))

    def check(self) -> "SiteFolder":
        """This folder. Raises `RunError` for one that is no site's."""
        if not self.exists():
            raise RunError(f"{self.path} is no site's folder (no site.json); `fedtalk join` makes one")
        return self

    def exists(self) -> bool:
        return self._file.is_file()

    @property
    def _file(self) -> Path:
        return self.path / "site.json"

    @property
    def policy(self) -> Path:
        return self.path / "policy.yaml"

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
    def ledger(self) -> Path:
        """What it has spent over all runs."""
        return self.ledgers / f"{self.name}.json"

    def rounds_spent(self) -> dict[str, int]:
        """Rounds that were charged, by the run's name. Raises `RunError` for a damaged ledger."""
        try:
            return ClientLedger(self.ledger).read().rounds if self.ledger.exists() else {}
        except Aborted as error:
            raise RunError(str(error)) from error

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
    def clips(self) -> Path:
        """Where its clips are, until they are prepared."""
        return Path(self._known("clips"))

    @property
    def speech(self) -> str | None:
        """Where this machine has the network that hears; None for where the run says."""
        return self._all().get("speech")

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
            return self._all()[what]
        except KeyError as error:
            raise RunError(f"{self._file} does not say {error}; put its last copy back") from error

    def _all(self) -> dict[str, str]:
        try:
            found = json.loads(read_own(self._file))
            return {str(name): str(value) for name, value in found.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise RunError(f"{self._file} is damaged ({error}); put its last copy back") from error


def _remove(path: Path) -> None:
    """A file, or a folder with all in it; nothing where there is none. Raises `OutputError`."""
    try:
        if path.is_symlink():
            raise OutputError(f"{path} is a link; remove it and what it leads to by hand, and leave again")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be removed ({error}); remove it by hand, and leave again") from error
