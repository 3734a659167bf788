"""Invites: a code that lets one site ask for membership once, and the request that it makes with it.

    s1:0Jk3...   the name, and 100 bytes in URL-safe base64: a secret of 16, the first 16 of the SHA-256 of the
                 authority's certificate, the last day (4), and the authority's signature over the name, that day and
                 the public half of an Ed25519 key that is made of the secret

Guarantee: a request that `read_request` accepts was made by somebody who has a code of this authority for that name,
and who can sign by the key that it names; who chose one by which anybody can has lost its place by itself. Whoever
knows the authority's public key can tell, so strangers' requests are not even kept. With the code a site knows the
authority before it has spoken to anybody: whoever answers at the coordinator's address must show a certificate of that
authority.

>>> authority = SigningKey.generate()
>>> invite = Invite.new("s1", b"a certificate", "2027-03-31", authority)
>>> Invite.parse(invite.code()) == invite
True
>>> key = SigningKey.generate()
>>> request = read_request(request_of(invite, key), authority.public)
>>> request.key == key.public and request.invite == invite.key.public
True
"""

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass, field
from datetime import date

from fedtalk_ray.enrolment.membership import EnrolmentError, check_name
from fedtalk_ray.messages import EnrolmentRequest
from fedtalk_ray.privacy.keys import KEY_BYTES, SigningKey, digest, joined, verify
from fedtalk_ray.privacy.wire import Buffer, MalformedMessage, decode, encode

SECRET_BYTES, DAY_BYTES, GRANT_BYTES = 16, 4, 64
_CODE_BYTES = 2 * SECRET_BYTES + DAY_BYTES + GRANT_BYTES

LARGEST_REQUEST = 512
"""Bytes of a request at most."""

_CONTEXT = b"fedtalk enrolment/2"


@dataclass(frozen=True)
class Invite:
    """name: who is invited. secret: 16 bytes that the authority printed and the site keeps. authority: the first 16
    bytes of the SHA-256 of the authority's certificate. until: the last day, as 2027-03-31. grant: the authority's
    signature, 64 bytes."""

    name: str
    secret: bytes = field(repr=False)
    authority: bytes
    until: str
    grant: bytes

    @classmethod
    def new(cls, name: str, certificate: bytes, until: str, authority: SigningKey) -> "Invite":
        """certificate: the authority's, DER; authority: its key. Raises `EnrolmentError` for a name that cannot be
        one."""
        secret = os.urandom(SECRET_BYTES)
        grant = authority.sign(_CONTEXT, "Invite", _granted(check_name(name), _key_of(secret).public, until))
        return cls(name, secret, fingerprint(certificate), until, grant)

    @property
    def key(self) -> SigningKey:
        """By which whoever has the code proves it."""
        return _key_of(self.secret)

    def code(self) -> str:
        return write_code(self.name, self.secret, self.authority, self.until, self.grant)

    @classmethod
    def parse(cls, code: str) -> "Invite":
        """Raises `EnrolmentError`, which repeats nothing of the code: it is a secret."""
        found = read_code(code)
        if found is None:
            raise EnrolmentError("--invite is no whole code; `authority invite` prints one, NAME:134-LETTERS")
        return cls(*found)

    def check(self, authority: bytes) -> None:
        """Raises `EnrolmentError` for one that its authority did not make so. authority: its public key, 32 bytes."""
        if not verify(authority, _CONTEXT, "Invite", _granted(self.name, self.key.public, self.until), self.grant):
            raise EnrolmentError("--invite is not the code that the authority printed: something in it was changed")


def write_code(name: str, secret: bytes, authority: bytes, until: str, grant: bytes) -> str:
    """What people are given: a name, and the rest in URL-safe base64."""
    day = date.fromisoformat(until).toordinal().to_bytes(DAY_BYTES, "big")
    return f"{name}:{base64.urlsafe_b64encode(secret + authority + day + grant).decode().rstrip('=')}"


def read_code(code: str) -> tuple[str, bytes, bytes, str, bytes] | None:
    """Name, secret, authority, last day and grant; None for what is no whole code."""
    name, _, text = code.strip().rpartition(":")
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        secret, authority, rest = content[:16], content[16:32], content[32:]
        until = date.fromordinal(int.from_bytes(rest[:DAY_BYTES], "big")).isoformat()
        check_name(name)
    except (binascii.Error, ValueError, OverflowError, EnrolmentError):
        return None
    return (name, secret, authority, until, rest[DAY_BYTES:]) if len(content) == _CODE_BYTES else None


def fingerprint(certificate: bytes) -> bytes:
    """What a code says of a certificate (DER): the first 16 bytes of its SHA-256."""
    return hashlib.sha256(certificate).digest()[:SECRET_BYTES]


def request_of(invite: Invite, key: SigningKey) -> bytes:
    """What a site sends to become a member: canonical bytes."""
    asked = invite.key
    said = joined(invite.name.encode(), key.public)
    proof = asked.sign(_CONTEXT, "Code", said)
    signature = key.sign(_CONTEXT, "EnrolmentRequest", joined(said, proof))
    request = EnrolmentRequest(
        invite.name, key.public, asked.public, invite.until, invite.grant, code_proof=proof, key_proof=signature
    )
    return encode(request)


def read_request(data: Buffer, authority: bytes) -> EnrolmentRequest:
    """A request by somebody whom the authority invited, whose key belongs to whoever made it. Whether the code was
    used, or its day is over, is not looked at. authority: its public key, 32 bytes. Raises `EnrolmentError`."""
    try:
        if memoryview(data).nbytes > LARGEST_REQUEST:
            raise EnrolmentError(f"a request for membership has {LARGEST_REQUEST} bytes at most")
        request = decode(EnrolmentRequest, data)
    except (MalformedMessage, TypeError) as error:
        raise EnrolmentError(f"a request for membership is damaged: {error}") from error
    name = check_name(request.client)
    if not verify(authority, _CONTEXT, "Invite", _granted(name, request.invite, request.until), request.grant):
        raise EnrolmentError(f"the request of {name} was made with no code of this federation's authority")
    said = joined(name.encode(), request.key)
    if not verify(request.invite, _CONTEXT, "Code", said, request.code_proof):
        raise EnrolmentError(f"the request of {name} was not made with the code that it names")
    told = joined(said, request.code_proof)
    whole = len(request.key) == KEY_BYTES and verify(request.key, _CONTEXT, "EnrolmentRequest", told, request.key_proof)
    if not whole:
        raise EnrolmentError(f"the request of {name} does not prove that its key is its own")
    return request


def _key_of(secret: bytes) -> SigningKey:
    return SigningKey(digest(_CONTEXT, secret))


def _granted(name: str, invite: bytes, until: str) -> bytes:
    return joined(name.encode(), invite, until.encode())
