"""Invites: a code that lets one site ask for membership once, and the request that it makes with it.

    s1:0Jk3...   the name, and 32 bytes in URL-safe base64: a secret of 16 bytes, and the first 16 bytes of the SHA-256
                 of the authority's certificate

Guarantee: a request that `check_request` accepts was made by somebody who has the code, and who has the secret half of
the key that it names. With the code's second half a site knows the authority before it has spoken to anybody, so that
whoever answers at the coordinator's address must show a certificate of that authority.

>>> invite = Invite.new("s1", b"a certificate")
>>> Invite.parse(invite.code()) == invite
True
>>> key = SigningKey.generate()
>>> check_request(request_of(invite, key), invite.secret) == key.public
True
"""

import base64
import binascii
import hashlib
import hmac
import os
from dataclasses import dataclass, field

from fedtalk_ray.enrolment.membership import EnrolmentError, check_name
from fedtalk_ray.messages import EnrolmentRequest
from fedtalk_ray.privacy.keys import KEY_BYTES, SigningKey, joined, verify
from fedtalk_ray.privacy.wire import Buffer, MalformedMessage, decode, encode

SECRET_BYTES = 16

LARGEST_REQUEST = 512
"""Bytes of a request at most."""

_CONTEXT = b"fedtalk enrolment/1"


@dataclass(frozen=True)
class Invite:
    """name: who is invited. secret: 16 bytes that the authority and the site alone know. authority: the first 16 bytes
    of the SHA-256 of the authority's certificate."""

    name: str
    secret: bytes = field(repr=False)
    authority: bytes

    @classmethod
    def new(cls, name: str, certificate: bytes) -> "Invite":
        """certificate: the authority's, DER. Raises `EnrolmentError` for a name that cannot be one."""
        return cls(check_name(name), os.urandom(SECRET_BYTES), fingerprint(certificate))

    def code(self) -> str:
        return f"{self.name}:{base64.urlsafe_b64encode(self.secret + self.authority).decode().rstrip('=')}"

    @classmethod
    def parse(cls, code: str) -> "Invite":
        """Raises `EnrolmentError`, which does not repeat the code: it is a secret."""
        name, _, text = code.strip().rpartition(":")
        try:
            content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            content = b""
        if not name or len(content) != 2 * SECRET_BYTES:
            raise EnrolmentError("--invite is no whole code; `authority invite` prints one, NAME:43-LETTERS")
        return cls(check_name(name), content[:SECRET_BYTES], content[SECRET_BYTES:])


def fingerprint(certificate: bytes) -> bytes:
    """What a code says of a certificate (DER): the first 16 bytes of its SHA-256."""
    return hashlib.sha256(certificate).digest()[:SECRET_BYTES]


def request_of(invite: Invite, key: SigningKey) -> bytes:
    """What a site sends to become a member: canonical bytes."""
    proof = _code_proof(invite.secret, invite.name, key.public)
    signature = key.sign(_CONTEXT, "EnrolmentRequest", joined(invite.name.encode(), proof))
    return encode(EnrolmentRequest(invite.name, key.public, proof, signature))


def read_request(data: Buffer) -> EnrolmentRequest:
    """A request whose key belongs to whoever made it; by which code is not looked at. Raises `EnrolmentError`."""
    try:
        if memoryview(data).nbytes > LARGEST_REQUEST:
            raise EnrolmentError(f"a request for membership has {LARGEST_REQUEST} bytes at most")
        request = decode(EnrolmentRequest, data)
    except (MalformedMessage, TypeError) as error:
        raise EnrolmentError(f"a request for membership is damaged: {error}") from error
    check_name(request.client)
    said = joined(request.client.encode(), request.code_proof)
    whole = len(request.key) == KEY_BYTES and verify(request.key, _CONTEXT, "EnrolmentRequest", said, request.key_proof)
    if not whole:
        raise EnrolmentError(f"the request of {request.client} does not prove that its key is its own")
    return request


def check_request(data: Buffer, secret: bytes) -> bytes:
    """The public key that a request asks membership for. secret: of the invite. Raises `EnrolmentError`."""
    request = read_request(data)
    if not hmac.compare_digest(request.code_proof, _code_proof(secret, request.client, request.key)):
        raise EnrolmentError(f"the request of {request.client} was not made with the code that it was given")
    return request.key


def _code_proof(secret: bytes, name: str, key: bytes) -> bytes:
    return hmac.digest(secret, joined(_CONTEXT, name.encode(), key), "sha256")
