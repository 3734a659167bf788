"""A client's side of the secure protocol, for one round: a plain state machine without network, clock or Ray.

Guarantee, against a server that does anything together with up to `graph.tolerated` clients: of this client's vector
they learn nothing but what the sum over at least `Limits.opened` clients of the planned cohort, those in league among
them, tells.

The client answers every stage at most once and only in order; whatever looks wrong makes it raise `Aborted`, drop its
secrets, and answer nothing more. Against active servers this rests on the pinned keys (`keys.Roster`), on limits that
follow from the planned cohort alone, on holders that the client draws itself, and on the consistency stage: it opens
self masks of survivors and pairwise masks of the others only for a set that two thirds of the cohort have signed. What
of that is needed for what: `graph`.

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
    OpenedShare,
    Plan,
    SealedFrom,
    SealedShare,
    SealedShares,
    Share,
    Survivors,
    Unmasking,
    UnmaskRequest,
)
from fedtalk_ray.privacy import protocol, shamir
from fedtalk_ray.privacy.graph import chosen, quorum
from fedtalk_ray.privacy.keys import KEY_BYTES, ExchangeKey, Roster, SigningKey, joined
from fedtalk_ray.privacy.masking import Mask
from fedtalk_ray.privacy.protocol import Aborted, Code, Frame, Limits, Rejected
from fedtalk_ray.privacy.wire import Buffer

Message = TypeVar("Message")

_NONCE = bytes(12)
"""Constant: every (kind, owner, holder, session) has a key of its own, used once."""


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
        self._drawn = chosen(self._cohort, name, limits.complete_up_to)
        self._held_seeds: dict[str, bytes] = {}
        self._held_keys: dict[str, bytes] = {}
        self._dealt_seeds: dict[str, bytes] = {}

    def advertise(self) -> bytes:
        """Stage 0: this round's public keys."""
        self._enter("advertise")
        return self._send(Advertisement(self._name, self._encryption.public, self._masking.public))

    def share(self, frame: Buffer) -> bytes:
        """Stage 1, on an `Advertised`: deals shares of the masking key to those of its holders who are there."""
        self._enter("share")
        self._keys = self._read_keys(self._receive(frame, Advertised).advertisements)
        self._session = protocol.session_of(self._context, self._keys)
        planned, advertised = len(self._cohort), len(self._keys)
        if advertised < self._limits.survivors(planned):
            raise self._abort(Code.TOO_FEW, f"{advertised} clients of a cohort of {planned} advertised keys")
        self._holders = {holder for holder in self._drawn if holder in self._keys}
        self._check_keys(self._holders)
        return self._send(SealedShares(self._name, self._deal("key", self._masking.secret, self._holders)))

    def mask(self, frame: Buffer, vector: np.ndarray) -> bytes:
        """Stage 2, on a `Delivered`: masks the vector, uint32 [L], with its holders and those whose shares it holds, as
        far as they are there (U2); deals shares of the self mask's seed to those of the holders."""
        self._enter("mask")
        delivered = self._receive(frame, Delivered)
        self._partners = set(delivered.partners)
        owners = {share.owner for share in delivered.shares}
        if not owners <= self._partners <= self._keys.keys() - {self._name}:
            raise self._abort(Code.WRONG_SHARES, "partners or owners of shares that cannot be")
        self._check_keys(self._partners - self._holders)
        self._delivered = owners
        for share in delivered.shares:
            self._unseal("key", share, self._held_keys)
        masked = vector.copy()
        added = [self._seed]
        subtracted: list[bytes] = []
        for partner in self._partners:
            first, second = sorted((self._name, partner))
            mask = self._derive(self._masking, self._keys[partner][1], "mask", first, second)
            (added if self._name < partner else subtracted).append(mask)
        stream = Mask(len(masked))
        stream.add(masked, *added)
        stream.subtract(masked, *subtracted)
        commitment = protocol.seed_commitment(self._session, self._name, self._seed)
        shares = self._deal("seed", self._seed, self._holders & self._partners)
        return self._send(MaskedInput(self._name, masked, commitment, shares))

    def confirm(self, frame: Buffer) -> bytes:
        """Stage 3, on `Survivors`: signs whom the server says it has heard, and whose shares are of no use to it."""
        self._enter("confirm")
        message = self._receive(frame, Survivors)
        survivors = message.clients
        self._survivors = set(survivors)
        known = len(self._survivors) == len(survivors) and self._survivors <= set(self._keys)
        if not known or self._survivors & self._holders - self._partners or self._name not in self._survivors:
            raise self._abort(Code.INCONSISTENT, "the survivors are not among those who shared")
        if len(survivors) < self._limits.survivors(len(self._cohort)):
            raise self._abort(Code.TOO_FEW, f"{len(survivors)} survivors")
        useless = self._delivered - self._held_keys.keys() - self._survivors
        for share in message.seeds:
            if share.owner in self._survivors - {self._name} and not self._unseal("seed", share, self._held_seeds):
                useless.add(share.owner)
        self._confirmed = protocol.survivors_hash(self._session, survivors)
        points = protocol.points(self._keys)
        return self._send(Consistency(self._name, self._confirmed, tuple(sorted(points[owner] for owner in useless))))

    def unmask(self, frame: Buffer) -> bytes:
        """Stage 4, on an `UnmaskRequest`: opens the shares that it holds, of each client one kind or the other: of the
        seeds those of the survivors that it confirmed, of the keys those of the others. Of its own seed, which is to be
        given back, also those that it dealt to survivors who have signed that theirs are of no use. The last word."""
        self._enter("unmask")
        request = self._receive(frame, UnmaskRequest)
        confirmed = self._confirmed_by(request.confirmations)
        if len(confirmed) < quorum(len(self._cohort)):
            raise self._abort(Code.TOO_FEW, "too few clients confirmed the survivors")
        place = protocol.points(self._keys)[self._name]
        opened = tuple(
            OpenedShare(holder, self._dealt_seeds[holder])
            for holder in sorted(confirmed.keys() & self._dealt_seeds.keys() & self._survivors)
            if place in confirmed[holder].complaints
        )
        seeds = tuple(Share(owner, held) for owner, held in sorted(self._held_seeds.items()))
        keys = tuple(
            Share(owner, held) for owner, held in sorted(self._held_keys.items()) if owner not in self._survivors
        )
        answer = self._send(Unmasking(self._name, seeds, keys, opened))
        self._forget()
        return answer

    def _read_keys(self, advertisements: tuple[bytes, ...]) -> dict[str, tuple[bytes, bytes]]:
        """Everybody's round keys. Their signatures are looked at where a key is used (`_check_keys`)."""
        keys: dict[str, tuple[bytes, bytes]] = {}
        self._advertised: dict[str, Frame] = {}
        for data in advertisements:
            try:
                frame, message = protocol.read_frame(data, Advertisement)
            except Rejected as error:
                raise self._abort(error.code, "an advertisement") from error
            if self._key_of(message) is None:
                raise self._abort(Code.UNKNOWN_CLIENT, "an advertisement")
            if message.client in keys:
                raise self._abort(Code.BAD_KEYS, "two advertisements of one client")
            self._advertised[message.client] = frame
            keys[message.client] = (message.encryption_key, message.masking_key)
        if keys.get(self._name) != (self._encryption.public, self._masking.public):
            raise self._abort(Code.BAD_KEYS, "this client's own keys were altered or left out")
        every = [key for pair in keys.values() for key in pair]
        if len(set(every)) != len(every) or any(len(key) != KEY_BYTES for key in every):
            raise self._abort(Code.BAD_KEYS, "a key is used twice or has a wrong length")
        return keys

    def _check_keys(self, clients: set[str]) -> None:
        for client in sorted(clients):
            try:
                protocol.check_signature(self._advertised[client], self._context, self._roster.clients.get(client))
            except Rejected as error:
                raise self._abort(error.code, "an advertisement") from error

    def _deal(self, kind: str, secret: bytes, holders: set[str]) -> tuple[SealedShare, ...]:
        """A share of a secret, "key" or "seed", for each holder, and one for this client itself, which is not sent."""
        threshold = self._limits.threshold(len(self._cohort))
        everybody = sorted({*holders, self._name})
        if len(everybody) < threshold:
            raise self._abort(Code.TOO_FEW, f"{len(everybody)} holders are there, {threshold} are needed")
        points = protocol.points(self._keys)
        shares = shamir.split(secret, threshold, [points[holder] for holder in everybody])
        if kind == "seed":
            self._held_seeds[self._name] = shares[points[self._name]]
            self._dealt_seeds = {holder: shares[points[holder]] for holder in holders}
        return tuple(self._seal(kind, holder, shares[points[holder]]) for holder in everybody)

    def _seal(self, kind: str, holder: str, share: bytes) -> SealedShare:
        if holder == self._name:
            ciphertext = b""
        else:
            cipher = self._cipher(kind, self._name, holder, holder)
            ciphertext = cipher.encrypt(_NONCE, share, self._associated(self._name, holder))
        commitment = protocol.share_commitment(self._session, kind, self._name, holder, share)
        return SealedShare(holder, ciphertext, commitment)

    def _unseal(self, kind: str, sealed: SealedFrom, kept: dict[str, bytes]) -> bool:
        """Keeps a share that was dealt to this client, if it is the one that its owner committed to."""
        try:
            cipher = self._cipher(kind, sealed.owner, self._name, sealed.owner)
            share = cipher.decrypt(_NONCE, sealed.ciphertext, self._associated(sealed.owner, self._name))
        except (InvalidTag, ValueError):
            return False
        committed = protocol.share_commitment(self._session, kind, sealed.owner, self._name, share)
        if len(share) != shamir.SHARE_BYTES or committed != sealed.commitment:
            return False
        kept[sealed.owner] = share
        return True

    def _cipher(self, kind: str, owner: str, holder: str, peer: str) -> ChaCha20Poly1305:
        """One key for each kind and direction: the label names owner and holder in that order."""
        return ChaCha20Poly1305(self._derive(self._encryption, self._keys[peer][0], f"{kind} share", owner, holder))

    def _derive(self, own: ExchangeKey, peer: bytes, label: str, first: str, second: str) -> bytes:
        try:
            return own.derive(peer, self._session, label, first, second)
        except ValueError as error:
            raise self._abort(Code.BAD_KEYS, "a key that gives everybody the same secret") from error

    def _associated(self, owner: str, holder: str) -> bytes:
        return joined(self._session, owner.encode(), holder.encode())

    def _confirmed_by(self, confirmations: tuple[bytes, ...]) -> dict[str, Consistency]:
        """Clients of the cohort that signed this client's own set of survivors, and with what."""
        signers = {}
        for data in confirmations:
            try:
                message = protocol.open_frame(data, Consistency, self._context, self._key_of)
            except Rejected:
                continue
            if message.survivors == self._confirmed:
                signers[message.client] = message
        return signers

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
            protocol.check_size(frame, len(self._cohort), of_all=kind is UnmaskRequest)
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
        self._held_seeds, self._held_keys, self._dealt_seeds = {}, {}, {}
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
    if len(set(plan.cohort)) < len(plan.cohort):
        # Noise is shared among as many as the plan names.
        raise Aborted(Code.NOT_PINNED, "the plan names a client twice")
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
    if not 1 <= plan.weight_scale < math.inf:
        raise Aborted(Code.NOT_PINNED, f"the server's scale of weights is {plan.weight_scale:g}")
