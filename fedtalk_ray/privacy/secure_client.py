"""A client's side of the secure protocol, for one round: a plain state machine without network, clock or Ray.

Guarantee, against an honest but curious server together with fewer than t of this client's h holders, and against a
server that lies together with up to `graph.tolerated` clients (which for the ring is no proof): of this client's vector
they learn nothing but what the sum over at least `Limits.survivors` clients of the planned cohort, those in league
among them, tells.

The client answers every stage at most once and only in order; whatever looks wrong makes it raise `Aborted`, drop its
secrets, and answer nothing more. Against active servers this rests on the pinned keys (`keys.Roster`), on limits that
follow from the planned cohort alone, and on the consistency stage: a client opens self masks of survivors and pairwise
masks of dropouts only for a set that enough of its holders have signed.

A round of three by hand (the server's side is `secure_server.SecureServer`):

>>> from fedtalk_ray.privacy import rehearsal
>>> total, survivors = rehearsal.run({"a": 1, "b": 2, "c": 3})
>>> int(total[0]), survivors
(6, ('a', 'b', 'c'))
"""

import math
import os
from typing import TypeVar

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedtalk_ray.messages import (
    Advertised,
    Advertisement,
    Consistency,
    Delivered,
    MaskedInput,
    Plan,
    SealedShare,
    SealedShares,
    Share,
    Survivors,
    Unmasking,
    UnmaskRequest,
)
from fedtalk_ray.privacy import protocol, shamir
from fedtalk_ray.privacy.graph import neighbours
from fedtalk_ray.privacy.keys import KEY_BYTES, ExchangeKey, Roster, SigningKey, joined
from fedtalk_ray.privacy.masking import Mask
from fedtalk_ray.privacy.protocol import Aborted, Code, Limits, Rejected
from fedtalk_ray.privacy.wire import Buffer

Message = TypeVar("Message")

_NONCE = bytes(12)
"""Constant: every (owner, holder, session) has a key of its own, used once."""


class SecureClient:
    """One client in one exchange. Frames go in and out as bytes; secrets live only in this object."""

    def __init__(self, name: str, key: SigningKey, roster: Roster, plan: Plan, limits: Limits) -> None:
        """The caller has checked the plan against what it pins (`check_plan`)."""
        self._name, self._key, self._roster, self._limits = name, key, roster, limits
        self._context = protocol.context_of(plan, roster)
        self._cohort = set(plan.cohort)
        self._next = "advertise"
        self._encryption, self._masking = ExchangeKey.generate(), ExchangeKey.generate()
        self._seed = os.urandom(KEY_BYTES)
        self._held: dict[str, tuple[bytes, bytes]] = {}

    def advertise(self) -> bytes:
        """Stage 0: this round's public keys."""
        self._enter("advertise")
        return self._send(Advertisement(self._name, self._encryption.public, self._masking.public))

    def share(self, frame: Buffer) -> bytes:
        """Stage 1, on an `Advertised`: checks everybody's keys, deals shares of both secrets to the holders."""
        self._enter("share")
        self._keys = self._checked_keys(self._receive(frame, Advertised).advertisements)
        self._session = protocol.session_of(self._context, self._keys)
        planned, advertised = len(self._cohort), len(self._keys)
        if advertised < self._limits.survivors(planned):
            raise self._abort(Code.TOO_FEW, f"{advertised} clients of a cohort of {planned} advertised keys")
        self._neighbours = neighbours(
            list(self._keys), self._session, cohort=planned, complete_up_to=self._limits.complete_up_to
        )[self._name]
        holders, threshold = (*self._neighbours, self._name), self._limits.threshold(planned)
        points = protocol.points(self._keys)
        dealt_at = [points[holder] for holder in holders]
        seeds = shamir.split(self._seed, threshold, dealt_at)
        secrets = shamir.split(self._masking.secret, threshold, dealt_at)
        self._held[self._name] = (seeds[points[self._name]], secrets[points[self._name]])
        sealed = tuple(self._seal(holder, seeds[points[holder]], secrets[points[holder]]) for holder in holders)
        return self._send(
            SealedShares(self._name, protocol.seed_commitment(self._session, self._name, self._seed), sealed)
        )

    def mask(self, frame: Buffer, vector: np.ndarray) -> bytes:
        """Stage 2, on a `Delivered`: masks the vector, uint32 [L], with everybody whose shares arrived (U2)."""
        self._enter("mask")
        delivered = self._receive(frame, Delivered).shares
        owners = [share.owner for share in delivered]
        if len(set(owners)) != len(owners) or not set(owners) <= set(self._neighbours):
            raise self._abort(Code.WRONG_SHARES, "shares of strangers, or two of one client")
        for share in delivered:
            self._unseal(share.owner, share.ciphertext)
        if len(self._held) < self._limits.threshold(len(self._cohort)):
            raise self._abort(Code.TOO_FEW, "too few of the shares dealt to this client can be read")
        self._partners = set(owners)
        masked = vector.copy()
        stream = Mask(len(masked))
        stream.add(masked, self._seed)
        for partner in owners:
            first, second = sorted((self._name, partner))
            mask = self._derive(self._masking, self._keys[partner][1], "mask", first, second)
            (stream.add if self._name < partner else stream.subtract)(masked, mask)
        return self._send(MaskedInput(self._name, masked))

    def confirm(self, frame: Buffer) -> bytes:
        """Stage 3, on `Survivors`: signs whom the server says it has heard."""
        self._enter("confirm")
        survivors = self._receive(frame, Survivors).clients
        self._survivors = set(survivors)
        known = len(self._survivors) == len(survivors) and self._survivors <= set(self._keys)
        # Of other clients' U2 this one sees its neighbours' part: none of those can survive without having shared.
        strangers = (self._survivors & set(self._neighbours)) - self._partners
        if not known or strangers or self._name not in self._survivors:
            raise self._abort(Code.INCONSISTENT, "the survivors are not among those who shared")
        if len(survivors) < self._limits.survivors(len(self._cohort)):
            raise self._abort(Code.TOO_FEW, f"{len(survivors)} survivors")
        self._confirmed = protocol.survivors_hash(self._session, survivors)
        return self._send(Consistency(self._name, self._confirmed))

    def unmask(self, frame: Buffer) -> bytes:
        """Stage 4, on an `UnmaskRequest`: hands out its shares, of each client one kind or the other. The last word."""
        self._enter("unmask")
        request = self._receive(frame, UnmaskRequest)
        survivors, dropped = set(request.survivors), set(request.dropped)
        if survivors & dropped:
            raise self._abort(Code.OVERLAP, "a client is named both as survivor and as dropped")
        holders = {*self._neighbours, self._name}
        if survivors != self._survivors or dropped & holders != (self._partners - survivors) & holders:
            raise self._abort(Code.INCONSISTENT, "not the survivors that were confirmed")
        needed = self._limits.threshold(len(self._cohort))
        if self._signatures(request.confirmations, holders & survivors) < needed:
            raise self._abort(Code.TOO_FEW, "too few clients confirmed the survivors")
        seeds = tuple(Share(owner, held[0]) for owner, held in sorted(self._held.items()) if owner in survivors)
        keys = tuple(Share(owner, held[1]) for owner, held in sorted(self._held.items()) if owner in dropped)
        answer = self._send(Unmasking(self._name, seeds, keys))
        self._forget()
        return answer

    def _checked_keys(self, advertisements: tuple[bytes, ...]) -> dict[str, tuple[bytes, bytes]]:
        keys: dict[str, tuple[bytes, bytes]] = {}
        for data in advertisements:
            try:
                message = protocol.open_frame(data, Advertisement, self._context, self._key_of)
            except Rejected as error:
                raise self._abort(error.code, "an advertisement") from error
            if message.client in keys:
                raise self._abort(Code.BAD_KEYS, "two advertisements of one client")
            keys[message.client] = (message.encryption_key, message.masking_key)
        if keys.get(self._name) != (self._encryption.public, self._masking.public):
            raise self._abort(Code.BAD_KEYS, "this client's own keys were altered or left out")
        every = [key for pair in keys.values() for key in pair]
        if len(set(every)) != len(every) or any(len(key) != KEY_BYTES for key in every):
            raise self._abort(Code.BAD_KEYS, "a key is used twice or has a wrong length")
        return keys

    def _seal(self, holder: str, seed_share: bytes, key_share: bytes) -> SealedShare:
        """Encrypts both shares to their holder; the client's own are kept and not sent."""
        if holder == self._name:
            ciphertext = b""
        else:
            cipher = self._cipher(self._name, holder, holder)
            ciphertext = cipher.encrypt(_NONCE, joined(seed_share, key_share), self._associated(self._name, holder))
        return SealedShare(
            holder,
            ciphertext,
            protocol.share_commitment(self._session, "seed", self._name, holder, seed_share),
            protocol.share_commitment(self._session, "key", self._name, holder, key_share),
        )

    def _unseal(self, owner: str, ciphertext: bytes) -> None:
        """Keeps the two shares that `owner` dealt to this client; a damaged ciphertext is left out."""
        try:
            cipher = self._cipher(owner, self._name, owner)
            plain = cipher.decrypt(_NONCE, ciphertext, self._associated(owner, self._name))
        except (InvalidTag, ValueError):
            return
        size = shamir.SHARE_BYTES
        if len(plain) == 2 * (4 + size):
            self._held[owner] = (plain[4 : 4 + size], plain[8 + size :])

    def _cipher(self, owner: str, holder: str, peer: str) -> ChaCha20Poly1305:
        """One key for each direction: the label names owner and holder in that order."""
        return ChaCha20Poly1305(self._derive(self._encryption, self._keys[peer][0], "share", owner, holder))

    def _derive(self, own: ExchangeKey, peer: bytes, label: str, first: str, second: str) -> bytes:
        try:
            return own.derive(peer, self._session, label, first, second)
        except ValueError as error:
            raise self._abort(Code.BAD_KEYS, "a key that gives everybody the same secret") from error

    def _associated(self, owner: str, holder: str) -> bytes:
        return joined(self._session, owner.encode(), holder.encode())

    def _signatures(self, confirmations: tuple[bytes, ...], expected: set[str]) -> int:
        """Distinct clients among `expected` that signed this client's own set of survivors."""
        signers = set()
        for data in confirmations:
            try:
                message = protocol.open_frame(data, Consistency, self._context, self._key_of)
            except Rejected:
                continue
            if message.client in expected and message.survivors == self._confirmed:
                signers.add(message.client)
        return len(signers)

    def _key_of(self, message: Advertisement | Consistency) -> bytes | None:
        return self._roster.clients.get(message.client) if message.client in self._cohort else None

    def _enter(self, stage: str) -> None:
        """Every stage once and in order; anything else ends the round for this client."""
        if stage != self._next:
            raise self._abort(Code.WRONG_STAGE, f"{stage} was asked for, {self._next} is next")
        later = protocol.STAGES.index(stage) + 1
        self._next = protocol.STAGES[later] if later < len(protocol.STAGES) else "nothing"

    def _receive(self, frame: Buffer, kind: type[Message]) -> Message:
        try:
            protocol.check_size(frame, len(self._cohort))
            return protocol.open_frame(frame, kind, self._context, lambda _: self._roster.server)
        except Rejected as error:
            raise self._abort(error.code, error.detail) from error

    def _send(self, message: object) -> bytes:
        return protocol.seal_frame(self._key, self._context, message)

    def _abort(self, code: Code, detail: str) -> Aborted:
        self._forget()
        return Aborted(code, detail)

    def _forget(self) -> None:
        """Drops the round's secrets (Python cannot promise that no copy stays in memory)."""
        self._next = "nothing"
        self._held = {}
        self._seed = b""
        vars(self).pop("_encryption", None)
        vars(self).pop("_masking", None)


def open_plan(frame: Buffer, roster: Roster, run: str) -> Plan:
    """The server's signed plan for the next round. Raises `Aborted` for another run's or anybody else's."""
    try:
        protocol.check_size(frame, len(roster.clients))
        plan = protocol.open_frame(frame, Plan, protocol.run_context(run), lambda _: roster.server)
    except Rejected as error:
        raise Aborted(error.code, error.detail) from error
    if plan.run != run:
        raise Aborted(Code.NOT_PINNED, "the plan is of another run")
    return plan


def check_plan(
    plan: Plan,
    name: str,
    *,
    last_exchange: int,
    backbone: bytes,
    shared: bytes,
    config: bytes,
    clip_norm: float | None = None,
) -> None:
    """Whether a client may take part: a new exchange, and the very models and configuration that it has itself.

    clip_norm: the configuration's; None where it is adapted, and so the server's to say: noise is relative to it.
    Raises `Aborted`.
    """
    if plan.exchange <= last_exchange:
        raise Aborted(Code.OLD_ROUND, f"exchange {plan.exchange}, the last one was {last_exchange}")
    if name not in plan.cohort:
        raise Aborted(Code.NOT_IN_ROUND, "this client is not in the cohort")
    for what, planned, own in (
        ("backbone", plan.backbone, backbone),
        ("shared parameters", plan.shared, shared),
        ("configuration", plan.config, config),
    ):
        if planned != own:
            raise Aborted(Code.NOT_PINNED, f"the server's {what} differs from this client's")
    if not (0 < plan.clip_norm < math.inf and clip_norm in (None, plan.clip_norm)):
        raise Aborted(Code.NOT_PINNED, f"the server's clip norm is {plan.clip_norm:g}, this client's {clip_norm}")
