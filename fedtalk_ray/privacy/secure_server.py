"""The server's side of the secure protocol, for one round: a plain state machine without network, clock or Ray.

Guarantee to the run: the sum that `close` opens after the last stage is exactly the sum modulo 2^32 of the vectors of
the clients in `survivors`, each of whom signed its own; otherwise `Aborted`. A bad message is `Rejected` and leaves the
state as it was. What it holds of a client's vector is one masked sum over all of them.

    for each stage:  receive(frame) every answer, then close() -> the next frame for each client that is still there

`close` is a deadline: who has not answered by then has dropped out. See `rehearsal.run` for the whole in one place.
"""

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from fedtalk_ray.messages import (
    FIELDS,
    TO_SERVER,
    Advertised,
    Advertisement,
    Consistency,
    Delivered,
    MaskedInput,
    Plan,
    SealedFrom,
    SealedShare,
    SealedShares,
    Survivors,
    Unmasking,
    UnmaskRequest,
)
from fedtalk_ray.privacy import protocol, shamir
from fedtalk_ray.privacy.graph import holders, quorum
from fedtalk_ray.privacy.keys import ExchangeKey, Roster, SigningKey, is_usable
from fedtalk_ray.privacy.masking import Mask
from fedtalk_ray.privacy.protocol import STAGES, Aborted, Code, Limits, Rejected
from fedtalk_ray.privacy.wire import Buffer

_TRIES = 200
"""Sets of shares that are tried for one secret."""


class SecureServer:
    """One exchange. `length`: values L in every client's vector."""

    def __init__(self, plan: Plan, key: SigningKey, roster: Roster, limits: Limits, length: int) -> None:
        self._plan, self._key, self._roster, self._limits = plan, key, roster, limits
        self._context = protocol.context_of(plan, roster)
        self._total = np.zeros(length, np.uint32)
        self._frames: dict[str, dict[str, bytes]] = {stage: {} for stage in STAGES}
        self._keys: dict[str, tuple[bytes, bytes]] = {}
        self._dealt_keys: dict[str, dict[str, SealedShare]] = {}
        self._dealt_seeds: dict[str, dict[str, SealedShare]] = {}
        self._commitments: dict[str, bytes] = {}
        self._seed_shares: dict[str, dict[str, bytes]] = {}
        self._key_shares: dict[str, dict[str, bytes]] = {}
        self.stage = STAGES[0]
        self.survivors: tuple[str, ...] = ()

    def plan_frame(self) -> bytes:
        """The signed plan, which comes before stage 0."""
        return protocol.seal_frame(self._key, protocol.run_context(self._plan.run), self._plan)

    def receive(self, data: Buffer) -> str:
        """Takes one client's answer to the open stage; returns who sent it. Raises `Rejected`, and changes nothing."""
        if self.stage not in TO_SERVER:
            raise Rejected(Code.WRONG_STAGE, "the round is over")
        values = len(self._total) if self.stage == "mask" else 0
        protocol.check_size(data, len(self._plan.cohort), values)
        message = protocol.open_frame(data, TO_SERVER[self.stage], self._context, self._key_of)
        client: str = message.client
        if client in self._frames[self.stage]:
            raise Rejected(Code.DUPLICATE)
        place = STAGES.index(self.stage)
        if place and client not in self._frames[STAGES[place - 1]]:
            raise Rejected(Code.NOT_IN_ROUND, "the client had dropped out before")
        getattr(self, f"_take_{self.stage}")(message)
        # Only small frames are kept: of the vectors nothing but their sum is.
        self._frames[self.stage][client] = b"" if self.stage == "mask" else bytes(data)
        return client

    def close(self) -> dict[str, bytes]:
        """Ends the open stage; returns the next frame for each client that answered (after the last: nothing).

        Raises `Aborted` when too few answered, or when the sum cannot be unmasked.
        """
        if self.stage not in TO_SERVER:
            raise Aborted(Code.WRONG_STAGE, "the round is over")
        alive = sorted(self._frames[self.stage])
        closed, self.stage = self.stage, "over"
        needed = self._limits.survivors(len(self._plan.cohort))
        # In the last stage every secret needs a threshold of its own, which is looked at there.
        if closed != "unmask" and len(alive) < needed:
            raise Aborted(Code.TOO_FEW, f"{len(alive)} clients after {closed}, {needed} are needed")
        frames: dict[str, bytes] = getattr(self, f"_close_{closed}")(alive)
        if closed != STAGES[-1]:
            self.stage = STAGES[STAGES.index(closed) + 1]
        return frames

    def total(self) -> np.ndarray:
        """The survivors' sum, uint32 [L], after the last stage was closed."""
        if self.stage != "open":
            raise Aborted(Code.WRONG_STAGE, "the sum is not unmasked")
        return self._total

    def _take_advertise(self, message: Advertisement) -> None:
        keys = (message.encryption_key, message.masking_key)
        taken = {key for pair in self._keys.values() for key in pair}
        if keys[0] == keys[1] or any(key in taken or not is_usable(key) for key in keys):
            raise Rejected(Code.BAD_KEYS)
        self._keys[message.client] = keys

    def _close_advertise(self, alive: list[str]) -> dict[str, bytes]:
        self.session = protocol.session_of(self._context, self._keys)
        self._points = protocol.points(alive)
        frame = self._signed(Advertised(tuple(self._frames["advertise"][client] for client in alive)))
        return dict.fromkeys(alive, frame)

    def _take_share(self, message: SealedShares) -> None:
        planned, there = len(self._plan.cohort), self._keys.keys()
        dealt = self._dealt_by(message)
        most = holders(planned, self._limits.complete_up_to) + 1
        # Of those that it drew not all may have advertised.
        if not dealt.keys() <= there or not most - (planned - len(there)) <= len(dealt) <= most:
            raise Rejected(Code.WRONG_SHARES, "not one share for each of its holders")
        self._dealt_keys[message.client] = dealt

    def _dealt_by(self, message: SealedShares | MaskedInput) -> dict[str, SealedShare]:
        """By holder, the client itself among them. Raises `Rejected` for shares that cannot be what they should."""
        dealt = {share.holder: share for share in message.shares}
        if len(dealt) != len(message.shares) or message.client not in dealt:
            raise Rejected(Code.WRONG_SHARES, "two shares for one holder, or none for itself")
        if len(dealt) < self._limits.threshold(len(self._plan.cohort)):
            raise Rejected(Code.WRONG_SHARES, "too few to give the secret back")
        own, sealed = FIELDS[SealedShare]["ciphertext"]
        for share in message.shares:
            size = own if share.holder == message.client else sealed
            if len(share.ciphertext) != size or len(share.commitment) not in FIELDS[SealedShare]["commitment"]:
                raise Rejected(Code.WRONG_SHARES, "a share or a commitment of another size")
        return dealt

    def _close_share(self, alive: list[str]) -> dict[str, bytes]:
        self._partners: dict[str, set[str]] = {client: set() for client in alive}
        for owner, dealt in self._dealt_keys.items():
            for holder in dealt.keys() & self._partners.keys() - {owner}:
                self._partners[owner].add(holder)
                self._partners[holder].add(owner)
        frames = {}
        for client, partners in self._partners.items():
            shares = self._sealed_for(client, self._dealt_keys, partners)
            frames[client] = self._signed(Delivered(tuple(sorted(partners)), shares))
        return frames

    def _sealed_for(
        self, holder: str, dealt: dict[str, dict[str, SealedShare]], owners: Iterable[str]
    ) -> tuple[SealedFrom, ...]:
        return tuple(
            SealedFrom(owner, dealt[owner][holder].ciphertext)
            for owner in sorted(owners)
            if owner != holder and holder in dealt[owner]
        )

    def _take_mask(self, message: MaskedInput) -> None:
        if message.vector.shape != self._total.shape:
            raise Rejected(Code.WRONG_LENGTH, f"{len(message.vector)} values, expected {len(self._total)}")
        client, dealt = message.client, self._dealt_by(message)
        if dealt.keys() != self._dealt_keys[client].keys() & {*self._partners[client], client}:
            raise Rejected(Code.WRONG_SHARES, "not one share for each holder with whom it masks")
        self._dealt_seeds[client], self._commitments[client] = dealt, message.seed_commitment
        self._total += message.vector

    def _close_mask(self, alive: list[str]) -> dict[str, bytes]:
        self.survivors = tuple(alive)
        return dict.fromkeys(alive, self._signed(Survivors(self.survivors)))

    def _take_confirm(self, message: Consistency) -> None:
        if message.survivors != protocol.survivors_hash(self.session, self.survivors):
            raise Rejected(Code.INCONSISTENT)

    def _close_confirm(self, alive: list[str]) -> dict[str, bytes]:
        # More would say nothing more.
        shown = tuple(self._frames["confirm"][client] for client in alive[: quorum(len(self._plan.cohort))])
        self._dropped = tuple(sorted(set(self._dealt_keys) - set(self.survivors)))
        return {
            client: self._signed(UnmaskRequest(self._sealed_for(client, self._dealt_seeds, self.survivors), shown))
            for client in alive
        }

    def _take_unmask(self, message: Unmasking) -> None:
        """Keeps the shares that are what their owners dealt; altered ones are left out, the others still count."""
        for kind, shares, kept, dealt, owners in (
            ("seed", message.self_mask_shares, self._seed_shares, self._dealt_seeds, set(self.survivors)),
            ("key", message.masking_key_shares, self._key_shares, self._dealt_keys, set(self._dropped)),
        ):
            for share in shares:
                promised = dealt.get(share.owner, {}).get(message.client)
                if share.owner not in owners or promised is None:
                    continue
                made = protocol.share_commitment(self.session, kind, share.owner, message.client, share.value)
                if made == promised.commitment:
                    kept.setdefault(share.owner, {})[message.client] = share.value

    def _close_unmask(self, alive: list[str]) -> dict[str, bytes]:
        stream = Mask(len(self._total))
        for client in self.survivors:
            seed = self._recover(self._seed_shares.get(client, {}), partial(self._committed_to, client))
            stream.subtract(self._total, seed)
        for client in self._dropped:
            partners = sorted(self._partners[client] & set(self.survivors))
            if partners:
                self._remove_pairs(client, partners, stream)
        self.stage = "open"
        return {}

    def _remove_pairs(self, client: str, partners: list[str], stream: Mask) -> None:
        """Takes the masks that survivors share with a client that dropped out off the sum."""
        advertised = self._keys[client][1]
        key = ExchangeKey(
            self._recover(self._key_shares.get(client, {}), lambda secret: ExchangeKey(secret).public == advertised)
        )
        for partner in partners:
            mask = key.derive(self._keys[partner][1], self.session, "mask", *sorted((client, partner)))
            # The survivor added where its name comes first, and subtracted otherwise.
            (stream.subtract if partner < client else stream.add)(self._total, mask)

    def _committed_to(self, client: str, seed: bytes) -> bool:
        return protocol.seed_commitment(self.session, client, seed) == self._commitments[client]

    def _recover(self, shares: dict[str, bytes], is_right: Callable[[bytes], bool]) -> bytes:
        """A secret from any t shares that give the right one: a dealer may have dealt a holder a wrong share."""
        needed = self._limits.threshold(len(self._plan.cohort))
        if len(shares) < needed:
            raise Aborted(Code.CANNOT_UNMASK, f"{len(shares)} good shares of a secret, {needed} are needed")
        # Sets in their order would keep the first holder for hundreds of tries; at random each is left out soon.
        draw = random.Random(0)
        for _ in range(_TRIES):
            chosen = draw.sample(sorted(shares), needed)
            try:
                secret = shamir.reconstruct({self._points[holder]: shares[holder] for holder in chosen})
            except ValueError:
                continue
            if is_right(secret):
                return secret
        raise Aborted(Code.CANNOT_UNMASK, "no shares of a secret give what was committed to")

    def _key_of(self, message: Any) -> bytes | None:
        return self._roster.clients.get(message.client) if message.client in self._plan.cohort else None

    def _signed(self, message: object) -> bytes:
        return protocol.seal_frame(self._key, self._context, message)
