"""The server's side of the secure protocol, for one round: a plain state machine without network, clock or Ray.

Guarantee to the run: the sum that `close` opens after the last stage is exactly the sum modulo 2^32 of the vectors of
the clients in `survivors`, each of whom signed its own; otherwise `Aborted`. A bad message is `Rejected` and leaves the
state as it was. What it holds of a client's vector is one masked sum over all of them.

    for each stage:  receive(frame) every answer, then close() -> the next frame for each client that is still there

`close` is a deadline: who has not answered by then has dropped out. See `rehearsal.run` for the whole in one place.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import pairwise
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
from fedtalk_ray.privacy.faults import Fault, Secret, faults
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
        self._complaints: dict[str, set[str]] = {}
        self.faults: dict[str, Fault] = {}
        """Who broke the protocol, or fell silent in an exchange that was lost."""
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
            place = STAGES.index(closed)
            # In the first stage too: one of eight that never comes would lose every round. Who abstains looks the same.
            before = self._frames[STAGES[place - 1]] if place else self._plan.cohort
            self.faults |= dict.fromkeys(set(before) - set(alive), Fault.SILENT)
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
            SealedFrom(owner, dealt[owner][holder].ciphertext, dealt[owner][holder].commitment)
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
        seeds = self._dealt_seeds
        return {
            client: self._signed(Survivors(self.survivors, self._sealed_for(client, seeds, alive))) for client in alive
        }

    def _take_confirm(self, message: Consistency) -> None:
        if message.survivors != protocol.survivors_hash(self.session, self.survivors):
            raise Rejected(Code.INCONSISTENT)
        names, places = sorted(self._points), message.complaints
        if any(later <= place for place, later in pairwise((0, *places))) or (places and places[-1] > len(names)):
            raise Rejected(Code.MALFORMED, "complaints about nobody, or twice about one")
        self._complaints[message.client] = {names[place - 1] for place in places}

    def _close_confirm(self, alive: list[str]) -> dict[str, bytes]:
        self._dropped = tuple(sorted(set(self._dealt_keys) - set(self.survivors)))
        # A quorum and whoever complains of the client; more would say nothing more.
        usual = alive[: quorum(len(self._plan.cohort))]
        frames = {}
        for client in alive:
            shown = {*usual, *(other for other in alive if client in self._complaints[other])}
            request = UnmaskRequest(tuple(self._frames["confirm"][other] for other in sorted(shown)))
            frames[client] = self._signed(request)
        return frames

    def _take_unmask(self, message: Unmasking) -> None:
        """Keeps the shares that are what their owners dealt; altered ones are left out, the others still count. What a
        dealer opens stands in for what a holder found useless."""
        for opened in message.opened:
            holder, dealer = opened.holder, message.client
            if dealer not in self._complaints.get(holder, ()):
                continue
            if self._fits("seed", self._dealt_seeds, dealer, holder, opened.value):
                self._seed_shares.setdefault(dealer, {})[holder] = opened.value
            elif holder in self._dealt_seeds[dealer]:
                self.faults[dealer] = Fault.WRONG_OPENING
        for kind, shares, kept, dealt, owners in (
            ("seed", message.self_mask_shares, self._seed_shares, self._dealt_seeds, set(self.survivors)),
            ("key", message.masking_key_shares, self._key_shares, self._dealt_keys, set(self._dropped)),
        ):
            for share in shares:
                if share.owner in owners and self._fits(kind, dealt, share.owner, message.client, share.value):
                    kept.setdefault(share.owner, {})[message.client] = share.value

    def _fits(self, kind: str, dealt: dict[str, dict[str, SealedShare]], owner: str, holder: str, value: bytes) -> bool:
        """Whether that is the share that the owner dealt to the holder."""
        promised = dealt.get(owner, {}).get(holder)
        made = protocol.share_commitment(self.session, kind, owner, holder, value)
        return promised is not None and made == promised.commitment

    def _close_unmask(self, alive: list[str]) -> dict[str, bytes]:
        partners = {client: sorted(self._partners[client] & set(self.survivors)) for client in self._dropped}
        seeds = {client: self._recover("seed", client) for client in self.survivors}
        keys = {client: self._recover("key", client) for client in self._dropped if partners[client]}
        self._find_faults(alive, seeds, keys)
        # Masks that are still on the sum, as they were put there.
        added: list[bytes] = []
        subtracted: list[bytes] = []
        for seed in seeds.values():
            if seed is None:
                raise Aborted(Code.CANNOT_UNMASK, "the shares of a self mask's seed do not give it back")
            added.append(seed)
        for client, secret in keys.items():
            if secret is None:
                raise Aborted(Code.CANNOT_UNMASK, "the shares of a masking key do not give it back")
            for partner, mask in self._shared_masks(client, secret, partners[client]):
                (added if partner < client else subtracted).append(mask)
        stream = Mask(len(self._total))
        stream.subtract(self._total, *added)
        stream.add(self._total, *subtracted)
        self.stage = "open"
        return {}

    def _find_faults(self, alive: list[str], seeds: dict[str, bytes | None], keys: dict[str, bytes | None]) -> None:
        needed = [
            Secret(owner, dealt[owner].keys(), given.get(owner, {}).keys(), found is None)
            for secrets, dealt, given in (
                (seeds, self._dealt_seeds, self._seed_shares),
                (keys, self._dealt_keys, self._key_shares),
            )
            for owner, found in secrets.items()
        ]
        tolerated = self._limits.tolerated(len(self._plan.cohort))
        self.faults = faults(needed, alive, self._complaints, tolerated) | self.faults

    def _shared_masks(self, client: str, secret: bytes, partners: list[str]) -> Iterator[tuple[str, bytes]]:
        """The keys of the masks that a client that dropped out shares with each survivor, who added it where its name
        comes first, and subtracted it otherwise."""
        key = ExchangeKey(secret)
        for partner in partners:
            yield partner, key.derive(self._keys[partner][1], self.session, "mask", *sorted((client, partner)))

    def _is_right(self, kind: str, client: str, secret: bytes) -> bool:
        """Whether that is the seed that a client committed to, or the key whose public one it advertised."""
        if kind == "seed":
            return protocol.seed_commitment(self.session, client, secret) == self._commitments[client]
        return ExchangeKey(secret).public == self._keys[client][1]

    def _recover(self, kind: str, client: str) -> bytes | None:
        """A secret from any t shares that give the right one. All are what the dealer committed to: where some t of
        them give another, it dealt wrong ones."""
        shares = (self._seed_shares if kind == "seed" else self._key_shares).get(client, {})
        needed = self._limits.threshold(len(self._plan.cohort))
        if len(shares) < needed:
            return None
        # Sets in their order would keep the first holder for hundreds of tries; at random each is left out soon.
        draw = random.Random(0)
        for _ in range(_TRIES):
            chosen = draw.sample(sorted(shares), needed)
            try:
                secret: bytes | None = shamir.reconstruct({self._points[holder]: shares[holder] for holder in chosen})
            except ValueError:
                secret = None
            if secret is not None and self._is_right(kind, client, secret):
                return secret
            self.faults[client] = Fault.WRONG_SHARES
        return None

    def _key_of(self, message: Any) -> bytes | None:
        return self._roster.clients.get(message.client) if message.client in self._plan.cohort else None

    def _signed(self, message: object) -> bytes:
        return protocol.seal_frame(self._key, self._context, message)
