"""Tokens: whoever has one may fetch the model that a run released, until its day is over, and nothing else.

    NAME:...     as an invite's code (`enrolment.invite`); the authority's signature is over the name, the day and the
                 SHA-256 of the secret, as a token and no invite

A bearer token: no key of the holder's is asked for, so it is shown to the federation's own coordinator alone, whose
certificate the token names, and never in the clear.

>>> authority = SigningKey.generate()
>>> token = Token.new("museum", b"a certificate", "2027-03-31", authority)
>>> token.check(authority.public, "2027-03-30")
"""

import os
from dataclasses import dataclass, field

from fedtalk_ray.enrolment.invite import SECRET_BYTES, fingerprint, read_code, write_code
from fedtalk_ray.enrolment.membership import EnrolmentError, check_name
from fedtalk_ray.privacy.keys import SigningKey, digest, joined, verify

_CONTEXT = b"fedtalk token/1"


@dataclass(frozen=True)
class Token:
    """name: whom it was given to. secret: 16 bytes. authority: the first 16 bytes of the SHA-256 of the authority's
    certificate. until: the last day, as 2027-03-31. grant: the authority's signature, 64 bytes."""

    name: str
    secret: bytes = field(repr=False)
    authority: bytes
    until: str
    grant: bytes = field(repr=False)

    @classmethod
    def new(cls, name: str, certificate: bytes, until: str, authority: SigningKey) -> "Token":
        """certificate: the authority's, DER; authority: its key. Raises `EnrolmentError` for a name that cannot be
        one."""
        secret = os.urandom(SECRET_BYTES)
        grant = authority.sign(_CONTEXT, "Token", _granted(check_name(name), secret, until))
        return cls(name, secret, fingerprint(certificate), until, grant)

    def code(self) -> str:
        return write_code(self.name, self.secret, self.authority, self.until, self.grant)

    @classmethod
    def parse(cls, code: str) -> "Token":
        """Raises `EnrolmentError`, which repeats nothing of the token: it is a secret."""
        found = read_code(code)
        if found is None:
            raise EnrolmentError("--token is no whole token; `authority token` prints one, NAME:134-LETTERS")
        return cls(*found)

    def check(self, authority: bytes, today: str | None = None) -> None:
        """Raises `EnrolmentError` for one that its authority did not make so, or whose day is over where today is
        told. authority: its public key, 32 bytes."""
        if not verify(authority, _CONTEXT, "Token", _granted(self.name, self.secret, self.until), self.grant):
            raise EnrolmentError("--token is not one that this federation's authority printed")
        if today is not None and self.until < today:
            raise EnrolmentError(f"the token of {self.name} ran out on {self.until}")


def _granted(name: str, secret: bytes, until: str) -> bytes:
    return joined(name.encode(), digest(_CONTEXT, secret), until.encode())
