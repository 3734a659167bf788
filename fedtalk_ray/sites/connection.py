"""A site's line to its coordinator: it calls out, signs every request, and comes back when the line breaks."""

import hashlib
import json
import math
import os
import random
import ssl
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import requests
import urllib3

from fedtalk_ray.enrolment.caller import COUNT, EPOCH, EPOCH_BYTES, signed_headers
from fedtalk_ray.enrolment.certificates import read_authority
from fedtalk_ray.enrolment.invite import SECRET_BYTES, Invite, fingerprint
from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.enrolment.token import Token
from fedtalk_ray.errors import UserError
from fedtalk_ray.messages import Part
from fedtalk_ray.outputs import writing
from fedtalk_ray.privacy.keys import SigningKey

CONNECT_S, ANSWER_S = 10.0, 60.0
"""Seconds to wait for a connection, and for each piece of an answer."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
"""Seconds between two tries; they double, and a random part is added, so that sites do not all come at once."""

PATIENCE_S = 120.0
"""Seconds after which somebody with a token gives up; a site never does."""

LARGEST_CERTIFICATE, LARGEST_ANSWER = 16 << 10, 64 << 20
"""Bytes of an authority's certificate, and of any answer that is no file."""

IF_OTHER = "If-None-Match"

_CHUNK = 1 << 20


class ConnectionRefused(UserError):
    """The coordinator answered, and not as it should."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"the coordinator refuses: {said} (HTTP {status})")
        self.status, self.said = status, said


def fetch_authority(address: str, code: Invite | Token) -> bytes:
    """The authority's certificate, PEM, from a coordinator that nobody vouches for yet: invite or token name it.

    Raises `EnrolmentError` for an address where no coordinator answers, or one of another authority.
    """
    if not address.startswith("https://"):
        raise EnrolmentError(f"{address!r} is no coordinator's address; it looks like https://HOST:8443")
    session = _new_session()
    session.verify = False
    with warnings.catch_warnings():
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        try:
            where = f"{address.rstrip('/')}/v1/authority"
            with session.get(where, timeout=(CONNECT_S, ANSWER_S), allow_redirects=False, stream=True) as answer:
                status, found = answer.status_code, _content(answer, LARGEST_CERTIFICATE)
        except (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError) as error:
            raise EnrolmentError(f"nobody answers at {address} ({_reason(error)})") from error
    if status != 200:
        raise EnrolmentError(f"what answers at {address} is no coordinator (HTTP {status})")
    certificate, key = read_authority(found)
    if fingerprint(certificate) != code.authority or len(code.authority) != SECRET_BYTES:
        raise EnrolmentError(
            f"the coordinator at {address} belongs to another authority than the one that made this code"
        )
    code.check(key)
    # That certificate alone: whoever answered may have put one of its own behind it.
    return ssl.DER_cert_to_PEM_cert(certificate).encode()


def _new_session() -> requests.Session:
    """Of which no proxy and no .netrc of this machine has a part."""
    session = requests.Session()
    session.trust_env = False
    session.headers["Accept-Encoding"] = "identity"
    return session


def _content(answer: requests.Response, largest: int) -> bytes:
    """A body of so many bytes at most. Raises `EnrolmentError` for a longer one."""
    found = bytearray()
    for chunk in answer.iter_content(1 << 16):
        found += chunk
        if len(found) > largest:
            raise EnrolmentError(f"the coordinator says more than {largest} bytes at once")
    return bytes(found)


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
        self._session = _new_session()
        self._session.verify = str(authority)
        self._epoch, self._count = os.urandom(EPOCH_BYTES), 0
        self._tell, self._longest_wait = tell, longest_wait
        self._files, self._signs = "/v1/files", True
        self._patience = math.inf

    @classmethod
    def with_token(
        cls, address: str, authority: Path, token: Token, tell: Callable[[str], None] = lambda line: None
    ) -> "Connection":
        """Calls of somebody who is no site: nothing is signed, and the token goes with each. Where nobody answers for
        `PATIENCE_S`, or who answers has no certificate for this address, `EnrolmentError`s say so."""
        line = cls(address, authority, token.name, SigningKey.generate(), tell)
        line._session.headers["Authorization"] = f"Bearer {token.code()}"
        line._files, line._signs, line._patience = "/v1/released", False, PATIENCE_S
        return line

    def ask_for_membership(self, request: bytes) -> str:
        """What there is to say about the request; empty as a rule. Raises `ConnectionRefused`."""
        return _said(self._until_answered("POST", "/v1/requests", request, signed=False)[1])

    def get(self, path: str, known: bytes | None = None) -> bytes | None:
        """What lies there, None for nothing yet, and where it is what is known. Raises `ConnectionRefused`."""
        unless = {} if known is None else {IF_OTHER: f'"{hashlib.sha256(known).hexdigest()}"'}
        answer, content = self._until_answered("GET", path, b"", unless)
        return None if answer.status_code in (204, 304) else content

    def post(self, path: str, body: bytes) -> bytes | None:
        """The answer to what is sent, None for none. Raises `ConnectionRefused`."""
        answer, content = self._until_answered("POST", path, body)
        return None if answer.status_code == 204 else content

    def fetch(self, part: Part, place: Path) -> None:
        """Fetches a file by its hash, going on where it broke off. Raises `ConnectionRefused`, and for a file that is
        another one `EnrolmentError`, which leaves none."""
        if place.is_file() and _hash_of(place) == part.digest:
            return
        partial = place.with_name(f"{place.name}.part")
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            while not partial.exists() or partial.stat().st_size < part.size:
                before = partial.stat().st_size if partial.exists() else 0
                self._fetch_more(part, partial)
                if partial.stat().st_size <= before:
                    time.sleep(FIRST_WAIT_S)
            if _hash_of(partial) != part.digest:
                partial.unlink()
                raise EnrolmentError(f"the file {part.name!r} that the coordinator sends is not the one it named")
            partial.replace(place)

    def _fetch_more(self, part: Part, partial: Path) -> None:
        have = partial.stat().st_size if partial.exists() else 0
        more = {"Range": f"bytes={have}-"} if have else {}
        answer, _ = self._until_answered("GET", f"{self._files}/{part.digest.hex()}", b"", more, file=True)
        try:
            with open(partial, "ab" if answer.status_code == 206 else "wb") as file:
                for chunk in answer.iter_content(_CHUNK):
                    if file.tell() + len(chunk) > part.size:
                        raise EnrolmentError(f"the file {part.name!r} that the coordinator sends is longer than named")
                    file.write(chunk)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            self._tell(f"the line broke ({_reason(error)}); going on where it broke off")

    def _starts_anew(self, answer: requests.Response) -> bool:
        """Takes on the coordinator's epoch, or the last count that it knows: it started anew, or this site did."""
        try:
            epoch, count = bytes.fromhex(answer.headers[EPOCH]), int(answer.headers.get(COUNT, "0"))
        except (KeyError, ValueError):
            return False
        self._epoch, self._count = epoch, min(max(count, 0), 2**62)
        return True

    def _until_answered(
        self,
        method: str,
        path: str,
        body: bytes,
        more: dict[str, str] | None = None,
        signed: bool = True,
        file: bool = False,
    ) -> tuple[requests.Response, bytes]:
        """The answer, and what it says; of a file, which is good for any length, nothing is read yet."""
        wait, told, again, began = FIRST_WAIT_S, False, 0, time.monotonic()
        while True:
            headers = dict(more or {})
            if signed and self._signs:
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
                    stream=True,
                )
                well = 200 <= answer.status_code < 300 or (answer.status_code == 304 and IF_OTHER in headers)
                content = b"" if file and well else _content(answer, LARGEST_ANSWER)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                why = _reason(error)
                if isinstance(error, requests.exceptions.SSLError) and self._patience < math.inf:
                    raise EnrolmentError(f"{self._address} has no certificate of its authority ({why})") from error
            else:
                if well:
                    return answer, content
                if answer.status_code == 401 and again < 3 and self._starts_anew(answer):
                    again += 1
                    continue
                if answer.status_code != 429 and answer.status_code < 500:
                    raise ConnectionRefused(answer.status_code, _said(content))
                why = f"HTTP {answer.status_code}"
            if time.monotonic() - began > self._patience:
                raise EnrolmentError(f"{self._address} did not answer for {self._patience:.0f} s ({why})")
            if not told:
                self._tell(f"{self._address} does not answer ({why}); trying on")
                told = True
            time.sleep(wait * (1 + random.random()))
            wait, again = min(2 * wait, self._longest_wait), 0


def _said(content: bytes) -> str:
    """What an answer says of why, one short line that can be printed."""
    text = content[:2000].decode("utf-8", "replace")
    try:
        said = str(json.loads(text)["detail"])
    except (ValueError, KeyError, TypeError):
        said = text
    return "".join(letter for letter in " ".join(said.split()) if letter.isprintable())[:200]


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
