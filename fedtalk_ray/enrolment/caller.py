"""Who calls: a signature in a request's headers, so that a coordinator knows the caller before it reads a body.

    Fedtalk-Site       the site's name
    Fedtalk-Count      a number that rises with each request of the site
    Fedtalk-Body       SHA-256 of the body, hex
    Fedtalk-Signature  Ed25519 by the site's key over these, the method, the path and the coordinator's epoch, hex

The epoch is drawn when a coordinator starts, and told to whoever asks. No clock is looked at. Guarantee: what
`signed_by` lets through was signed by the member of that name, for this method, path and body, in this epoch; and what
`Callers.count` lets through besides comes once. A request that was recorded is refused, in the epoch by its count,
afterwards by its epoch.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fedtalk_ray.enrolment.membership import Member
from fedtalk_ray.privacy.keys import SigningKey, digest, joined, verify

EPOCH_BYTES = 16

EPOCH, SITE, COUNT, BODY, SIGNATURE = (
    "Fedtalk-Epoch",
    "Fedtalk-Site",
    "Fedtalk-Count",
    "Fedtalk-Body",
    "Fedtalk-Signature",
)


def signed_headers(
    key: SigningKey, site: str, epoch: bytes, count: int, method: str, path: str, body: bytes
) -> dict[str, str]:
    """The headers of one request. body: SHA-256 of what is sent."""
    signature = key.sign(_context(epoch), f"{method} {path}", _said(site, count, body))
    return {SITE: site, COUNT: str(count), BODY: body.hex(), SIGNATURE: signature.hex()}


class UnknownCaller(Exception):
    """Who calls is nobody that may, or cannot be told. The text is for the caller."""


class MembershipOver(UnknownCaller):
    """Of somebody who was a member and is none any more."""


class OldRequest(UnknownCaller):
    """Perhaps signed by a member, in another epoch, or certainly, with a count that came before: whoever made it just
    now signs again. last: that member's last count, told to nobody else."""

    def __init__(self, text: str, last: int | None = None) -> None:
        super().__init__(text)
        self.last = last


@dataclass(frozen=True)
class Called:
    """One request that a member signed. body: SHA-256 that its body must have."""

    site: str
    key: bytes
    count: int
    body: bytes


def signed_by(
    member: Member | None, headers: Mapping[str, str], method: str, path: str, epoch: bytes, today: str
) -> Called:
    """The request, of this member. member: whom the list has under the name that the headers tell. today: as
    2027-03-31. Raises `UnknownCaller`."""
    if member is None:
        raise UnknownCaller("not a member")
    try:
        count, body = int(headers[COUNT]), bytes.fromhex(headers[BODY])
        signature = bytes.fromhex(headers[SIGNATURE])
    except (KeyError, ValueError) as error:
        raise UnknownCaller("the request's headers are damaged") from error
    said = _said(member.name, count, body) if 0 <= count < 2**62 and len(body) == 32 else b""
    if not said or not verify(member.key, _context(epoch), f"{method} {path}", said, signature):
        raise OldRequest("wrong signature, or one for another epoch")
    if member.until < today:
        raise MembershipOver(f"membership ran out on {member.until}")
    return Called(member.name, member.key, count, body)


class Callers:
    """What one coordinator remembers of who called: the last count of each key."""

    def __init__(self) -> None:
        self.epoch = os.urandom(EPOCH_BYTES)
        self._counts: dict[bytes, int] = {}

    def count(self, called: Called) -> None:
        """Raises `OldRequest` for one that came before."""
        last = self._counts.get(called.key, 0)
        if called.count <= last:
            raise OldRequest("a request that came before", last)
        self._counts[called.key] = called.count


def _context(epoch: bytes) -> bytes:
    return digest(b"fedtalk request/1", epoch)


def _said(site: str, count: int, body: bytes) -> bytes:
    return joined(site.encode(), count.to_bytes(8, "big"), body)
