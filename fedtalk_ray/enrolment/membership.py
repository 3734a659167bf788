"""Who belongs to a federation: names and public keys that its authority signed, under a number that only rises.

Guarantee, against whoever hands the list on, the coordinator too: what `open_membership` returns was signed, whole, by
the holder of the authority's key. A site keeps the newest that it saw and goes back to no older one (`later`).

Not covered: a coordinator that keeps the newest list from sites, and so somebody who was revoked among them. Sites that
have different keys for somebody of a cohort are in no sum together, since the protocol's signatures cover the cohort's
keys (`privacy.protocol.context_of`).
"""

import re
from dataclasses import dataclass
from functools import cached_property

from fedtalk_ray.errors import UserError
from fedtalk_ray.privacy.keys import KEY_BYTES, Roster, SigningKey, verify
from fedtalk_ray.privacy.wire import Buffer, MalformedMessage, decode, encode

_CONTEXT = b"fedtalk membership/1"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class EnrolmentError(UserError):
    """A name, code, request, certificate or list of members that cannot be used."""


def check_name(name: str) -> str:
    """The name. Raises `EnrolmentError` for one that is no plain folder's: it becomes part of paths at every side."""
    if not _NAME.fullmatch(name):
        raise EnrolmentError(
            f"{name!r} cannot be a site's name: up to 64 letters, digits, dots, hyphens and underscores, the first a "
            "letter or digit"
        )
    return name


@dataclass(frozen=True)
class Member:
    """name: of the site, its client in the protocol. key: Ed25519, 32 bytes. until: the last day, as 2027-03-31, on
    which the coordinator answers it."""

    name: str
    key: bytes
    until: str


@dataclass(frozen=True)
class Membership:
    """version: counts what the authority has signed. server: the coordinator's Ed25519 key, 32 bytes. revoked: who was
    a member and is none any more."""

    version: int
    server: bytes
    members: tuple[Member, ...]
    revoked: tuple[str, ...] = ()

    def member(self, name: str) -> Member | None:
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        return {member.name: member for member in self.members}

    def roster(self) -> Roster:
        """Whose signatures the secure protocol accepts."""
        return Roster({member.name: member.key for member in self.members}, self.server)


@dataclass(frozen=True)
class _Sealed:
    body: bytes
    signature: bytes


def seal_membership(key: SigningKey, membership: Membership) -> bytes:
    """The list as canonical bytes with the authority's signature."""
    body = encode(membership)
    return encode(_Sealed(body, key.sign(_CONTEXT, "Membership", body)))


def open_membership(data: Buffer, authority: bytes) -> Membership:
    """The list that these bytes hold. authority: its public key, 32 bytes. Raises `EnrolmentError`."""
    try:
        sealed = decode(_Sealed, data)
        if not verify(authority, _CONTEXT, "Membership", sealed.body, sealed.signature):
            raise EnrolmentError("the list of members was not signed by this federation's authority")
        membership = decode(Membership, sealed.body)
    except MalformedMessage as error:
        raise EnrolmentError(f"the list of members is damaged: {error}") from error
    names = [check_name(member.name) for member in membership.members]
    keys = [member.key for member in membership.members]
    if len(set(names)) < len(names) or len(set(keys)) < len(keys):
        # Two names with one key would be one party that counts twice in every sum.
        raise EnrolmentError("the list of members names somebody twice")
    if any(len(key) != KEY_BYTES for key in (membership.server, *keys)):
        raise EnrolmentError(f"the list of members holds a key that is not {KEY_BYTES} bytes long")
    return membership


def later(seen: Buffer | None, found: Buffer, authority: bytes) -> Membership:
    """The list in `found`. seen: the newest one until now.

    Raises `EnrolmentError` for an older one, and for another one of the same number.
    """
    membership = open_membership(found, authority)
    if seen is not None:
        newest = open_membership(seen, authority).version
        if membership.version < newest or (membership.version == newest and bytes(found) != bytes(seen)):
            raise EnrolmentError(
                f"the coordinator shows the list of members number {membership.version}, and number {newest} was seen "
                "before; ask whoever holds the authority's key"
            )
    return membership
