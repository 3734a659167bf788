"""What an authority gives a coordinator, and what the coordinator keeps beside it: the folder of `fedtalk serve --tls`.

    TLS/authority.pem      the authority's certificate, for everybody
    TLS/tls.pem  tls.key   the coordinator's certificate and its key
    TLS/coordinator.key    Ed25519: signs plans; the list of members names its public half
    TLS/members            the list of members, as the authority signed it last
    TLS/requests/          requests for membership that arrived, for the authority to look at

The authority's own key is not among them.
"""

from dataclasses import dataclass
from pathlib import Path

from fedtalk_ray.enrolment.certificates import check_server_files, read_authority
from fedtalk_ray.enrolment.membership import EnrolmentError, Membership, open_membership
from fedtalk_ray.messages import EnrolmentRequest
from fedtalk_ray.outputs import write_synced
from fedtalk_ray.privacy.keys import SigningKey

MOST_REQUESTS, MOST_OF_AN_INVITE = 4096, 4
"""Requests that wait at most, of all and of one invite: who has a code can make one for any number of keys. From two on
the authority lets none in."""


@dataclass(frozen=True)
class CoordinatorFiles:
    """Where they lie."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "authority.pem"

    @property
    def tls_certificate(self) -> Path:
        return self.folder / "tls.pem"

    @property
    def tls_key(self) -> Path:
        return self.folder / "tls.key"

    @property
    def server_key(self) -> Path:
        return self.folder / "coordinator.key"

    @property
    def members(self) -> Path:
        return self.folder / "members"

    @property
    def requests(self) -> Path:
        return self.folder / "requests"

    def check(self) -> "CoordinatorFiles":
        """This folder. Raises `EnrolmentError` for one that is no coordinator's, or whose parts do not fit."""
        if not self.authority.is_file():
            raise EnrolmentError(
                f"--tls {self.folder} is no coordinator's folder; `fedtalk authority init AUTH --host HOST` makes "
                "AUTH/coordinator"
            )
        check_server_files(self.tls_certificate, self.tls_key)
        if self.membership().server != SigningKey.read_from(self.server_key).public:
            raise EnrolmentError(f"{self.members} names another coordinator than {self.server_key}")
        return self

    def signed_members(self) -> bytes:
        try:
            return self.members.read_bytes()
        except OSError as error:
            raise EnrolmentError(f"the list of members {self.members} cannot be read ({error})") from error

    @property
    def authority_key(self) -> bytes:
        """The authority's public key, 32 bytes."""
        return read_authority(self.authority.read_bytes())[1]

    def membership(self) -> Membership:
        """Raises `EnrolmentError` for a list that this authority did not sign."""
        return open_membership(self.signed_members(), self.authority_key)

    def keep_request(self, data: bytes, request: EnrolmentRequest, today: str) -> bool:
        """Keeps a request, by now read, for the authority; False where too many wait. One key's is kept once for each
        code, and none takes the place of another; those whose code's day is over go."""
        of_this = f"{request.until}-{request.invite.hex()}-"
        # By its key and not by its bytes: one may be signed in many ways.
        place = self.requests / f"{of_this}{request.key.hex()}"
        if place.exists():
            return True
        self.requests.mkdir(mode=0o700, exist_ok=True)
        waiting = [found.name for found in self.requests.iterdir()]
        for over in [name for name in waiting if name < today]:
            (self.requests / over).unlink(missing_ok=True)
        if len(waiting) >= MOST_REQUESTS or sum(name.startswith(of_this) for name in waiting) >= MOST_OF_AN_INVITE:
            return False
        write_synced(place, data)
        return True

    def waiting(self) -> list[bytes]:
        """The requests that arrived."""
        return waiting_in(self.requests)


def waiting_in(folder: Path) -> list[bytes]:
    """The requests in a folder of them, in the order of their files' names."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [place.read_bytes() for place in found if place.is_file() and not place.name.startswith(".")]
