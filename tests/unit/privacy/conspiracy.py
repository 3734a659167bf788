"""A server that does anything, with some of the clients, against the others' state machines: what can they open?

`Conspiracy` holds all that the server sees and all secrets of the clients in league with it. It asks honest clients,
each once and in order as they insist on, whatever a `Story` says, keeps their answers, and at the end really takes off
every mask that it can make. What is left bare is a sum over some honest clients; the policy says how many they must be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedtalk_ray.messages import (
    Advertised,
    Advertisement,
    Consistency,
    Delivered,
    Plan,
    SealedFrom,
    Survivors,
    UnmaskRequest,
)
from fedtalk_ray.privacy import graph, protocol, shamir
from fedtalk_ray.privacy.keys import ExchangeKey, joined
from fedtalk_ray.privacy.masking import Mask
from fedtalk_ray.privacy.protocol import Aborted, Limits
from fedtalk_ray.privacy.secure_client import SecureClient
from tests.unit.privacy.conftest import Exchange, People

LENGTH = 2
"""Values of each vector."""


class Late(dict[str, frozenset[str]]):
    """What to tell a client, made when it is asked: by then the server knows more."""

    def __init__(self, make: Callable[[str], frozenset[str]]) -> None:
        super().__init__()
        self._make = make

    def get(self, name: str, default: Any = None) -> Any:
        return self._make(name)


@dataclass
class Story:
    """What each honest client is told; nothing said is the truth.

    heard: who advertised. withheld: whose shares do not arrive. survivors: who is to be confirmed as having survived.
    named: whom the last request names as survivors, by itself those confirmed. asked: who it says dropped out, by
    itself all other neighbours.
    """

    heard: Mapping[str, frozenset[str]] = field(default_factory=dict)
    withheld: Mapping[str, frozenset[str]] = field(default_factory=dict)
    survivors: Mapping[str, frozenset[str]] = field(default_factory=dict)
    named: Mapping[str, frozenset[str]] = field(default_factory=dict)
    asked: Mapping[str, frozenset[str]] = field(default_factory=dict)


class Conspiracy:
    """One exchange of `people.names`, of whom `colluders` are the server's."""

    def __init__(
        self,
        people: People,
        plan: Plan,
        limits: Limits,
        colluders: frozenset[str],
        client: type[SecureClient] = SecureClient,
    ) -> None:
        """client: what the honest ones run."""
        self.people, self.plan, self.limits, self.colluders = people, plan, limits, colluders
        self.context = protocol.context_of(plan, people.roster)
        self.honest = tuple(name for name in plan.cohort if name not in colluders)
        self.clients = {name: client(name, people.keys[name], people.roster, plan, limits) for name in self.honest}
        rng = np.random.default_rng(len(plan.cohort))
        self.vectors = {name: rng.integers(0, 2**32, LENGTH, dtype=np.uint32) for name in self.honest}
        self.own = {name: (ExchangeKey.generate(), ExchangeKey.generate()) for name in colluders}
        # What the server sees of each honest client, and what its clients read.
        self.advertised: dict[str, bytes] = {}
        self.session: dict[str, bytes] = {}
        self.keys: dict[str, dict[str, tuple[bytes, bytes]]] = {}
        self.sealed: dict[str, Any] = {}
        self.masked: dict[str, np.ndarray] = {}
        self.partners: dict[str, frozenset[str]] = {}
        self.told: dict[str, frozenset[str]] = {}
        self.shares: dict[tuple[str, str], dict[str, bytes]] = {}
        """(owner, "seed" or "key") -> holder -> share."""

    def run(self, story: Story) -> Conspiracy:
        """The whole exchange as the story goes; clients who refuse fall silent."""
        everybody = frozenset(self.plan.cohort)
        for name in self.honest:
            self.advertised[name] = self.clients[name].advertise()
        for name in self.colluders:
            encryption, masking = self.own[name]
            self.advertised[name] = self._by(name, Advertisement(name, encryption.public, masking.public))
        for name in self.honest:
            self._share(name, story.heard.get(name, everybody))
        for name in tuple(self.sealed):
            self._mask(name, story.withheld.get(name, frozenset()))
        confirmed: dict[str, bytes] = {}
        for name in tuple(self.masked):
            silent = frozenset(self.honest) - self.masked.keys()
            self.told[name] = story.survivors.get(name, frozenset(self.keys[name]) - silent)
            answer = self._try(name, "confirm", Survivors(tuple(sorted(self.told[name]))))
            if answer is not None:
                confirmed[name] = answer
        for name in confirmed:
            self._unmask(name, story, confirmed)
        return self

    def _share(self, name: str, heard: frozenset[str]) -> None:
        frames = tuple(self.advertised[other] for other in sorted(heard))
        answer = self._try(name, "share", Advertised(frames))
        if answer is None:
            return
        messages = [Exchange.opened(frame) for frame in frames]
        self.keys[name] = {each.client: (each.encryption_key, each.masking_key) for each in messages}
        self.session[name] = protocol.session_of(self.context, self.keys[name])
        self.sealed[name] = Exchange.opened(answer)
        for share in self.sealed[name].shares:
            if share.holder in self.colluders:
                plain = self._cipher(share.holder, name, share.holder, name).decrypt(
                    bytes(12), share.ciphertext, self._associated(name, share.holder, name)
                )
                self._keep(name, share.holder, plain)

    def _mask(self, name: str, withheld: frozenset[str]) -> None:
        """Honest neighbours' shares as they sealed them, unless withheld; the colluders' are made up."""
        parts = []
        for owner in self.holders(name) - {name} - withheld:
            if owner in self.colluders:
                size = shamir.SHARE_BYTES
                plain = joined(bytes(size), bytes(size))
                cipher = self._cipher(owner, owner, name, name)
                parts.append(SealedFrom(owner, cipher.encrypt(bytes(12), plain, self._associated(owner, name, name))))
            elif owner in self.sealed:
                sealed = {share.holder: share.ciphertext for share in self.sealed[owner].shares}
                parts.append(SealedFrom(owner, sealed.get(name, b"")))
        answer = self._try(name, "mask", Delivered(tuple(parts)), self.vectors[name])
        if answer is not None:
            self.masked[name] = Exchange.opened(answer).vector
            self.partners[name] = frozenset(part.owner for part in parts)

    def _unmask(self, name: str, story: Story, confirmed: Mapping[str, bytes]) -> None:
        told, holders = self.told[name], self.holders(name)
        named = story.named.get(name, told)
        dropped = story.asked.get(name, self.partners[name] - named)
        hashed = protocol.survivors_hash(self.session[name], tuple(sorted(told)))
        forged = [self._by(other, Consistency(other, hashed)) for other in self.colluders]
        request = UnmaskRequest(tuple(sorted(named)), tuple(sorted(dropped)), (*confirmed.values(), *forged))
        answer = self._try(name, "unmask", request)
        if answer is None:
            return
        message = Exchange.opened(answer)
        for kind, shares in (("seed", message.self_mask_shares), ("key", message.masking_key_shares)):
            for share in shares:
                if self.session.get(share.owner) == self.session[name] and share.owner in holders:
                    self.shares.setdefault((share.owner, kind), {})[name] = share.value

    # What they can make of it.

    def holders(self, name: str) -> frozenset[str]:
        """Who holds shares of a client's secrets, itself among them."""
        return self._holders_of[name]

    @cached_property
    def _holders_of(self) -> dict[str, frozenset[str]]:
        graphs: dict[bytes, dict[str, tuple[str, ...]]] = {}
        found = {}
        for name, session in self.session.items():
            if session not in graphs:
                graphs[session] = graph.neighbours(
                    list(self.keys[name]),
                    session,
                    cohort=self.cohort_of(name),
                    complete_up_to=self.limits.complete_up_to,
                )
            found[name] = frozenset((*graphs[session][name], name))
        return found

    def ring(self, name: str) -> list[str]:
        """The order of the ring in a client's session."""
        return graph.order(list(self.keys[name]), self.session[name])

    def cohort_of(self, name: str) -> int:
        """The number that a client takes its limits from."""
        return len(self.clients[name]._cohort)

    def secret(self, name: str, kind: str) -> bytes | None:
        """A client's self-mask seed or masking key, if enough shares came together that give it."""
        shares, needed = self.shares.get((name, kind), {}), self.limits.threshold(self.cohort_of(name))
        if len(shares) < needed:
            return None
        points = protocol.points(self.keys[name])
        chosen = sorted(shares)[:needed]
        return shamir.reconstruct({points[holder]: shares[holder] for holder in chosen})

    def opened(self) -> list[frozenset[str]]:
        """The sets of honest clients of whom the sum lies open, after every mask that can be made is off.

        Raises `AssertionError` where taking them off does not leave the plain sum: then this bookkeeping is wrong.
        """
        seeds = {name: self.secret(name, "seed") for name in self.masked}
        keys = {name: self.secret(name, "key") for name in self.session}
        bare: dict[str, np.ndarray] = {}
        tied: dict[str, set[str]] = {}
        for name, vector in self.masked.items():
            seed = seeds[name]
            if seed is None:
                continue
            rest, stream = vector.copy(), Mask(LENGTH)
            stream.subtract(rest, seed)
            tied[name] = set()
            for partner in self.partners[name]:
                mask = self._pair(name, partner, keys)
                if mask is None:
                    tied[name].add(partner)
                else:
                    (stream.subtract if name < partner else stream.add)(rest, mask)
            bare[name] = rest
        found, left = [], set(bare)
        while left:
            group, todo = set(), [min(left)]
            while todo:
                each = todo.pop()
                if each not in group:
                    group.add(each)
                    todo += tied.get(each, set())
            left -= group
            # Whoever is tied to somebody whose vector has not the same mask on it stays hidden, and all with it.
            if all(one in bare and all(one in tied.get(other, ()) for other in tied[one]) for one in group):
                total = np.sum([bare[name] for name in group], axis=0, dtype=np.uint32)
                plain = np.sum([self.vectors[name] for name in group], axis=0, dtype=np.uint32)
                assert (total == plain).all(), "masks were left on an opened sum"
                found.append(frozenset(group))
        return found

    def too_small(self) -> list[frozenset[str]]:
        """Opened sums of fewer clients than the policy allows, those in league counted as taking part."""
        least = self.limits.survivors(len(self.plan.cohort)) - len(self.colluders)
        return [group for group in self.opened() if len(group) < least]

    def _pair(self, name: str, partner: str, keys: Mapping[str, bytes | None]) -> bytes | None:
        """The key of the mask between two clients in the first one's session; None where nobody told it."""
        mine, theirs = self.keys[name][name][1], self.keys[name][partner][1]
        first, second = sorted((name, partner))
        made: Callable[[ExchangeKey, bytes], bytes] = lambda own, other: own.derive(  # noqa: E731
            other, self.session[name], "mask", first, second
        )
        if partner in self.colluders:
            return made(self.own[partner][1], mine)
        for secret, other in ((keys.get(name), theirs), (keys.get(partner), mine)):
            if secret is not None and ExchangeKey(secret).public in (mine, theirs):
                return made(ExchangeKey(secret), other)
        return None

    # How they speak.

    def _try(self, name: str, stage: str, message: Any, *more: Any) -> bytes | None:
        frame = protocol.seal_frame(self.people.server, self.context, message)
        with contextlib.suppress(Aborted):
            return bytes(getattr(self.clients[name], stage)(frame, *more))
        return None

    def _by(self, colluder: str, message: Any) -> bytes:
        return protocol.seal_frame(self.people.keys[colluder], self.context, message)

    def _cipher(self, colluder: str, owner: str, holder: str, in_session_of: str) -> ChaCha20Poly1305:
        other = owner if colluder == holder else holder
        peer = self.keys[in_session_of][other][0]
        key = self.own[colluder][0].derive(peer, self.session[in_session_of], "share", owner, holder)
        return ChaCha20Poly1305(key)

    def _associated(self, owner: str, holder: str, in_session_of: str) -> bytes:
        return joined(self.session[in_session_of], owner.encode(), holder.encode())

    def _keep(self, owner: str, holder: str, plain: bytes) -> None:
        size = shamir.SHARE_BYTES
        for kind, value in (("seed", plain[4 : 4 + size]), ("key", plain[8 + size :])):
            self.shares.setdefault((owner, kind), {})[holder] = value
