"""A site's line to its coordinator: it calls out, signs every request, and comes back when the line breaks."""

import hashlib
import os
import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
import urllib3

from fedtalk_ray.enrolment.caller import COUNT, EPOCH, EPOCH_BYTES, signed_headers
from fedtalk_ray.enrolment.certificates import read_authority
from fedtalk_ray.enrolment.invite import SECRET_BYTES, Invite, fingerprint
from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.errors import UserError
from fedtalk_ray.messages import Part
from fedtalk_ray.outputs import writing
from fedtalk_ray.privacy.keys import SigningKey

CONNECT_S, ANSWER_S = 10.0, 60.0
"""Seconds to wait for a connection, and for each piece of an answer."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
"""Seconds between two tries; they double, and a random part is added, so that sites do not all come at once."""

_CHUNK = 1 << 20


class ConnectionRefused(UserError):
    """The coordinator answered, and not as it should."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"the coordinator refuses: {said} (HTTP {status})")
        self.status, self.said = status, said


def fetch_authority(address: str, invite: Invite) -> bytes:
    """The authority's certificate, PEM, from a coordinator that nobody vouches for yet: the invite names it.

    Raises `EnrolmentError` for an address where no coordinator answers, or one of another authority.
    """
    if not address.startswith("https://"):
        raise EnrolmentError(f"{address!r} is no coordinator's address; it looks like https://HOST:8443")
    with warnings.catch_warnings():
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        try:
            answer = requests.get(f"{address.rstrip('/')}/v1/authority", verify=False, timeout=(CONNECT_S, ANSWER_S))
        except (requests.RequestException, UnicodeError) as error:
            raise EnrolmentError(f"nobody answers at {address} ({_reason(error)})") from error
    if answer.status_code != 200:
        raise EnrolmentError(f"what answers at {address} is no coordinator (HTTP {answer.status_code})")
    certificate, _ = read_authority(answer.content)
    if fingerprint(certificate) != invite.authority or len(invite.authority) != SECRET_BYTES:
        raise EnrolmentError(f"the coordinator at {address} belongs to another authority than the one that invited you")
    return answer.content


class Connection:
    """Calls of one site. Each is tried until there is an answer, however long that takes."""

    def __init__(
        self,
        address: str,
        authority: Path,
        name: str,
        key: SigningKey,
        tell: Callable[[str], None] = lambda line: None,
        longest_wait: float = LONGEST_WAIT_S,
    ) -> None:
        """authority: the certificate's file; whoever answers must show one of its. tell: hears of trouble on the line,
        once until it is over."""
        self._address, self._name, self._key = address.rstrip("/"), name, key
        self._session = requests.Session()
        # No proxy, no .netrc of this machine has a say in who is spoken to.
        self._session.trust_env = False
        self._session.verify = str(authority)
        self._epoch, self._count = os.urandom(EPOCH_BYTES), 0
        self._tell, self._longest_wait = tell, longest_wait

    def ask_for_membership(self, request: bytes) -> None:
        """Raises `ConnectionRefused`."""
        self._until_answered("POST", "/v1/requests", request, signed=False)

    def get(self, path: str) -> bytes | None:
        """What lies there, None for nothing yet. Raises `ConnectionRefused`."""
        answer = self._until_answered("GET", path, b"")
        return None if answer.status_code == 204 else bytes(answer.content)

    def post(self, path: str, body: bytes) -> bytes | None:
        """The answer to what is sent, None for none. Raises `ConnectionRefused`."""
        answer = self._until_answered("POST", path, body)
        return None if answer.status_code == 204 else bytes(answer.content)

    def fetch(self, part: Part, place: Path) -> None:
        """Fetches a file by its hash, going on where it broke off. Raises `ConnectionRefused`, and for a file that is
        another one `EnrolmentError`, which leaves none."""
        if place.is_file() and _hash_of(place) == part.digest:
            return
        partial = place.with_name(f"{place.name}.part")
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            while not partial.exists() or partial.stat().st_size < part.size:
                self._fetch_more(part, partial)
            if _hash_of(partial) != part.digest:
                partial.unlink()
                raise EnrolmentError(f"the file {part.name!r} that the coordinator sends is not the one it named")
            partial.replace(place)

    def _fetch_more(self, part: Part, partial: Path) -> None:
        have = partial.stat().st_size if partial.exists() else 0
        more = {"Range": f"bytes={have}-"} if have else {}
        answer = self._until_answered("GET", f"/v1/files/{part.digest.hex()}", b"", more, stream=True)
        try:
            with open(partial, "ab" if answer.status_code == 206 else "wb") as file:
                for chunk in answer.iter_content(_CHUNK):
                    if file.tell() + len(chunk) > part.size:
                        raise EnrolmentError(f"the file {part.name!r} that the coordinator sends is longer than named")
                    file.write(chunk)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            self._tell(f"the line broke ({_reason(error)}); going on where it broke off")

    def _until_answered(
        self, method: str, path: str, body: bytes, more: dict[str, str] | None = None, signed: bool = True, **how: Any
    ) -> requests.Response:
        wait, told, again = FIRST_WAIT_S, False, 0
        while True:
            headers = dict(more or {})
            if signed:
                self._count += 1
                digest = hashlib.sha256(body).digest()
                headers |= signed_headers(self._key, self._name, self._epoch, self._count, method, path, digest)
            try:
                answer = self._session.request(
                    method,
                    self._address + path,
                    data=body,
                    headers=headers,
                    timeout=(CONNECT_S, ANSWER_S),
                    allow_redirects=False,
                    **how,
                )
            except requests.RequestException as error:
                why = _reason(error)
            else:
                if 200 <= answer.status_code < 300:
                    return answer
                if answer.status_code == 401 and EPOCH in answer.headers and again < 3:
                    # The coordinator started anew, or this site did.
                    self._epoch = bytes.fromhex(answer.headers[EPOCH])
                    self._count = max(0, int(answer.headers.get(COUNT, "0")))
                    again += 1
                    continue
                if answer.status_code != 429 and answer.status_code < 500:
                    raise ConnectionRefused(answer.status_code, _said(answer))
                why = f"HTTP {answer.status_code}"
            if not told:
                self._tell(f"{self._address} does not answer ({why}); trying on")
                told = True
            time.sleep(wait * (1 + random.random()))
            wait, again = min(2 * wait, self._longest_wait), 0


def _said(answer: requests.Response) -> str:
    """What an answer says of why, one short line."""
    try:
        said = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        said = answer.text
    return " ".join(said.split())[:200]


def _reason(error: Exception) -> str:
    """The innermost reason of a failed request, one line."""
    while inner := (error.__cause__ or getattr(error, "reason", None) or next(iter(error.args), None)):
        if not isinstance(inner, Exception):
            break
        error = inner
    return " ".join(str(error).split())[:200]


def _hash_of(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
