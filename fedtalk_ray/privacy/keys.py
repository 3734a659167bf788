"""Who is who: long-term signing keys pinned in a roster, fresh exchange keys every round.

Guarantee, against a server or network that forges: a message that `verify` accepts was signed by the holder of the
pinned Ed25519 key, for this very context (run, exchange, round, model, configuration, cohort) and message type.
Against one who steals a long-term key later: round keys are fresh and dropped, so old masks stay secret.

Not covered: how the roster reaches the clients. A run makes it when clients enrol (trust on first use).

>>> key = SigningKey.generate()
>>> signature = key.sign(b"context", "Consistency", b"body")
>>> verify(key.public, b"context", "Consistency", b"body", signature)
True
>>> verify(key.public, b"another round", "Consistency", b"body", signature)
False
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedtalk_ray.errors import RunError
from fedtalk_ray.outputs import write_synced

KEY_BYTES = 32


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 key. Its secret never shows in a repr, and so in no log or traceback."""

    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "SigningKey":
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def kept_in(cls, path: Path) -> "SigningKey":
        """The key in a file that only its owner can read, made at the first call. `RunError` for a damaged one."""
        if not path.is_file():
            write_synced(path, os.urandom(KEY_BYTES))
        return cls.read_from(path)

    @classmethod
    def read_from(cls, path: Path) -> "SigningKey":
        """The key that is there. `RunError` for a damaged one, and for none."""
        try:
            secret = path.read_bytes()
        except OSError as error:
            raise RunError(f"signing key {path} cannot be read ({error}); the roster names its owner by it") from error
        if len(secret) != KEY_BYTES:
            raise RunError(f"signing key {path} is damaged: it holds {len(secret)} bytes, not {KEY_BYTES}")
        return cls(secret)

    @property
    def public(self) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(self.secret).public_key().public_bytes_raw()

    def sign(self, context: bytes, kind: str, body: bytes | memoryview) -> bytes:
        """64 bytes over context, message type and the body's SHA-256."""
        return Ed25519PrivateKey.from_private_bytes(self.secret).sign(_signed(context, kind, body))


def verify(public: bytes, context: bytes, kind: str, body: bytes | memoryview, signature: bytes) -> bool:
    """Whether the holder of `public` signed this body as this type in this context."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _signed(context, kind, body))
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Roster:
    """The pinned long-term public keys: the clients' by id, and the server's."""

    clients: Mapping[str, bytes]
    server: bytes


def is_usable(public: bytes) -> bool:
    """Whether a peer's X25519 key is 32 bytes and of no small order, with which every secret would be known."""
    try:
        ExchangeKey(bytes(range(KEY_BYTES))).derive(public, b"", "", "", "")
    except ValueError:
        return False
    return True


class ExchangeKey:
    """An X25519 key for one round. What it agrees on with a peer is computed once."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._key = X25519PrivateKey.from_private_bytes(secret)
        self._agreed: dict[bytes, bytes] = {}
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> "ExchangeKey":
        return cls(os.urandom(KEY_BYTES))

    def derive(self, peer: bytes, session: bytes, label: str, first: str, second: str) -> bytes:
        """HKDF-SHA256(X25519, salt = session, info = label, first, second), 32 bytes; the peer derives the same.

        `ValueError` for a peer's key of small order, with which the shared secret would be known to everybody.
        """
        if peer not in self._agreed:
            self._agreed[peer] = self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        info = joined(label.encode(), first.encode(), second.encode())
        return HKDF(SHA256(), KEY_BYTES, salt=session, info=info).derive(self._agreed[peer])


def joined(*parts: bytes) -> bytes:
    """Parts with their lengths before them, so that no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def digest(*parts: bytes) -> bytes:
    """SHA-256 of `joined` parts."""
    return hashlib.sha256(joined(*parts)).digest()


def _signed(context: bytes, kind: str, body: bytes | memoryview) -> bytes:
    return joined(context, kind.encode(), hashlib.sha256(body).digest())
