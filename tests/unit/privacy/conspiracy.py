"""A server that does anything, with some of the clients, against the others' state machines: what can they open?

`Conspiracy` asks honest clients whatever a `Story` says, and at the end really takes off every mask that it can make.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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
    SealedShare,
    Survivors,
    UnmaskRequest,
)
from fedtalk_ray.privacy import protocol, shamir
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

    heard: who advertised. absent: who is no partner of it, and whose shares do not arrive. strangers: who is said to be
    one besides. survivors: who is to be confirmed as having survived. again: the same once more. garbled: owner -> whom
    no usable share of its seed reaches. forged: of whom it gets round keys that the server made and signed.
    """

    heard: Mapping[str, frozenset[str]] = field(default_factory=dict)
    absent: Mapping[str, frozenset[str]] = field(default_factory=dict)
    strangers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    survivors: Mapping[str, frozenset[str]] = field(default_factory=dict)
    again: Mapping[str, frozenset[str]] = field(default_factory=dict)
    garbled: Mapping[str, frozenset[str]] = field(default_factory=dict)
    forged: Mapping[str, frozenset[str]] = field(default_factory=dict)


class Conspiracy:
    """One exchange of `people.names`, of whom `colluders` are the server's."""

    def __init__(
        self,
        people: People,
        plan: Plan,
        limits: Limits,
        colluders: frozenset[str],
        client: Callable[..., Any] = SecureClient,
    ) -> None:
        """client: what the honest ones run."""
        self.people, self.plan, self.limits, self.colluders = people, plan, limits, colluders
        self.context = protocol.context_of(plan, people.roster)
        self.honest = tuple(name for name in plan.cohort if name not in colluders)
        self.clients = {name: client(name, people.keys[name], people.roster, plan, limits) for name in self.honest}
        rng = np.random.default_rng(len(plan.cohort))
        self.vectors = {name: rng.integers(0, 2**32, LENGTH, dtype=np.uint32) for name in self.honest}
        self.own = defaultdict[str, tuple[ExchangeKey, ExchangeKey]](
            lambda: (ExchangeKey.generate(), ExchangeKey.generate())
        )
        """The server's own round keys: of its clients, and such as it forges of the others."""
        self.advertised: dict[str, bytes] = {}
        self.session: dict[str, bytes] = {}
        self.keys: dict[str, dict[str, tuple[bytes, bytes]]] = {}
        self.sealed: dict[str, dict[str, SealedShare]] = {}
        self.seeds: dict[str, dict[str, SealedShare]] = {}
        """What honest clients sealed, of keys and of seeds: owner -> holder -> share."""
        self.commitments: dict[str, bytes] = {}
        self.masked: dict[str, np.ndarray] = {}
        self.partners: dict[str, frozenset[str]] = {}
        self.shares: dict[tuple[str, str], dict[str, bytes]] = {}
        """(owner, "seed" or "key") -> holder -> share."""
        self.made_up: dict[bytes, tuple[bytes, ...]] = {}
        self.opened: list[frozenset[str]] = []
        """At the end: of which honest clients the sum lies open, after every mask that can be made is off."""

    def run(self, story: Story) -> Conspiracy:
        """The whole exchange as the story goes; clients who refuse fall silent."""
        everybody, self.story = frozenset(self.plan.cohort), story
        for name in self.honest:
            with contextlib.suppress(Aborted):
                self.advertised[name] = self.clients[name].advertise()
        for name in self.colluders & everybody:
            encryption, masking = self.own[name]
            self.advertised[name] = self._by(name, Advertisement(name, encryption.public, masking.public))
        for name in self.honest:
            self._share(name, story.heard.get(name, everybody))
        for name in tuple(self.sealed):
            self._mask(name, story)
        silent = frozenset(self.honest) - self.masked.keys()
        self._open({name: story.survivors.get(name, frozenset(self.keys[name]) - silent) for name in self.masked})
        if story.again:
            self._open({name: story.again[name] for name in self.masked if name in story.again})
        self.opened = self._bare_sums()
        return self

    def _open(self, told: Mapping[str, frozenset[str]]) -> None:
        """The last two stages. told: whom each client is to confirm."""
        confirmed: dict[str, bytes] = {}
        for name, survivors in told.items():
            message = Survivors(tuple(sorted(survivors)), tuple(self._seeds_for(name)))
            if (answer := self._try(name, "confirm", message)) is not None:
                confirmed[name] = answer
        for name in confirmed:
            self._unmask(name, told[name], tuple(confirmed.values()))

    def _share(self, name: str, heard: frozenset[str]) -> None:
        said = self.advertised | {other: self._forged(other) for other in self._servers(name) - self.colluders}
        frames = tuple(said[other] for other in sorted(heard & said.keys()))
        answer = self._try(name, "share", Advertised(frames))
        if answer is None:
            return
        messages = [Exchange.opened(frame) for frame in frames]
        self.keys[name] = {each.client: (each.encryption_key, each.masking_key) for each in messages}
        self.session[name] = protocol.session_of(self.context, self.keys[name])
        self.sealed[name] = self._read("key", name, Exchange.opened(answer).shares)

    def _mask(self, name: str, story: Story) -> None:
        """Whoever shares with it is a partner, and of the server's own all; what these dealt is made up."""
        usual = {owner for owner in self.sealed if name in self.sealed[owner]}
        usual |= self.sealed.keys() & self.sealed[name].keys() | self._servers(name)
        partners = usual - story.absent.get(name, frozenset()) | story.strangers.get(name, frozenset())
        partners = partners & self.keys[name].keys() - {name}
        parts = []
        for owner in sorted(partners):
            if owner in self._servers(name):
                cipher = self._cipher("key", owner, owner, name, name)
                made_up = cipher.encrypt(bytes(12), bytes(shamir.SHARE_BYTES), self._associated(owner, name, name))
                parts.append(SealedFrom(owner, made_up, bytes(32)))
            elif name in self.sealed.get(owner, {}):
                share = self.sealed[owner][name]
                parts.append(SealedFrom(owner, share.ciphertext, share.commitment))
        answer = self._try(name, "mask", Delivered(tuple(sorted(partners)), tuple(parts)), self.vectors[name])
        if answer is not None:
            message = Exchange.opened(answer)
            self.masked[name] = message.vector
            self.partners[name] = frozenset(partners)
            self.seeds[name] = self._read("seed", name, message.shares)
            self.commitments[name] = message.seed_commitment

    def _unmask(self, name: str, told: frozenset[str], confirmed: tuple[bytes, ...]) -> None:
        hashed = protocol.survivors_hash(self.session[name], tuple(sorted(told)))
        everybody = tuple(range(1, len(self.keys[name]) + 1))
        forged = tuple(self._by(other, Consistency(other, hashed, everybody)) for other in self.colluders)
        forged += self._forged_confirmations(hashed)
        answer = self._try(name, "unmask", UnmaskRequest(2 * (*confirmed, *forged)))
        if answer is None:
            return
        message = Exchange.opened(answer)
        for kind, shares in (("seed", message.self_mask_shares), ("key", message.masking_key_shares)):
            for share in shares:
                if self.session.get(share.owner) == self.session[name]:
                    self.shares.setdefault((share.owner, kind), {})[name] = share.value
        for opened in message.opened:
            self.shares.setdefault((name, "seed"), {})[opened.holder] = opened.value

    def _seeds_for(self, name: str) -> Iterator[SealedFrom]:
        """The seed shares that it holds; of those of `garbled` something that it cannot use, so that it complains."""
        for owner, shares in self.seeds.items():
            if name in shares:
                spoilt = name in self.story.garbled.get(owner, ())
                ciphertext = bytes(49) if spoilt else shares[name].ciphertext
                yield SealedFrom(owner, ciphertext, shares[name].commitment)

    def _read(self, kind: str, owner: str, shares: tuple[SealedShare, ...]) -> dict[str, SealedShare]:
        """Who got what of a client; what was sealed for keys of the server's is opened and kept."""
        for share in shares:
            if share.holder in self._servers(owner):
                cipher = self._cipher(kind, share.holder, owner, share.holder, owner)
                plain = cipher.decrypt(bytes(12), share.ciphertext, self._associated(owner, share.holder, owner))
                self.shares.setdefault((owner, kind), {})[share.holder] = plain
        return {share.holder: share for share in shares}

    def cohort_of(self, name: str) -> int:
        """The number that a client takes its limits from."""
        return len(self.clients[name]._cohort)

    def secret(self, name: str, kind: str) -> bytes | None:
        """A client's self-mask seed or masking key, if enough shares came together that give it."""
        candidates = []
        shares, points = self.shares.get((name, kind), {}), protocol.points(self.keys[name])
        for count in (self.limits.threshold(self.cohort_of(name)), len(shares)):
            with contextlib.suppress(ValueError):
                candidates.append(shamir.reconstruct({points[each]: shares[each] for each in sorted(shares)[:count]}))
        for secret in candidates:
            if kind == "key" and ExchangeKey(secret).public == self.keys[name][name][1]:
                return secret
            committed = protocol.seed_commitment(self.session[name], name, secret)
            if kind == "seed" and committed == self.commitments[name]:
                return secret
        return None

    def _bare_sums(self) -> list[frozenset[str]]:
        """Raises `AssertionError` where no plain sum is left without masks: then this bookkeeping is wrong."""
        keys = {name: self.secret(name, "key") for name in self.session}
        bare: dict[str, np.ndarray] = {}
        tied: dict[str, set[str]] = {}
        for name, masked in self.masked.items():
            if (seed := self.secret(name, "seed")) is None:
                continue
            rest, stream, tied[name] = masked.copy(), Mask(LENGTH), set()
            stream.subtract(rest, seed)
            for partner in self.partners[name]:
                if (mask := self._pair(name, partner, keys)) is None:
                    tied[name].add(partner)
                else:
                    (stream.subtract if name < partner else stream.add)(rest, mask)
            bare[name] = rest
        found = set()
        for name in bare:
            group, todo = set[str](), [name]
            while todo:
                each = todo.pop()
                if each not in group:
                    group.add(each)
                    todo += tied.get(each, set())
            # Whoever is tied to somebody whose vector has not the same mask on it stays hidden, and all who need it.
            if all(one in bare and all(one in tied.get(other, ()) for other in tied[one]) for one in group):
                total = np.sum([bare[name] for name in group], axis=0, dtype=np.uint32)
                plain = np.sum([self.vectors[name] for name in group], axis=0, dtype=np.uint32)
                assert (total == plain).all(), "masks were left on an opened sum"
                found.add(frozenset(group))
        return sorted(found, key=sorted)

    def too_small(self) -> list[frozenset[str]]:
        """Opened sums of fewer clients than the policy allows, those in league counted as taking part."""
        least = self.limits.opened(len(self.plan.cohort)) - len(self.colluders)
        return [group for group in self.opened if len(group) < least]

    def _pair(self, name: str, partner: str, keys: Mapping[str, bytes | None]) -> bytes | None:
        """The key of the mask between two clients in the first one's session; None where nobody told it."""
        mine, theirs = self.keys[name][name][1], self.keys[name][partner][1]
        first, second = sorted((name, partner))

        def made(own: ExchangeKey, other: bytes) -> bytes:
            return own.derive(other, self.session[name], "mask", first, second)

        if partner in self._servers(name):
            return made(self.own[partner][1], mine)
        for secret, other in ((keys.get(name), theirs), (keys.get(partner), mine)):
            if secret is not None and ExchangeKey(secret).public in (mine, theirs):
                return made(ExchangeKey(secret), other)
        return None

    def _try(self, name: str, stage: str, message: Any, *more: Any) -> bytes | None:
        frame = self._signed_by_server(message)
        with contextlib.suppress(Aborted):
            return bytes(getattr(self.clients[name], stage)(frame, *more))
        return None

    def _by(self, colluder: str, message: Any) -> bytes:
        return protocol.seal_frame(self.people.keys[colluder], self.context, message)

    def _signed_by_server(self, message: Any) -> bytes:
        return protocol.seal_frame(self.people.server, self.context, message)

    def _forged_confirmations(self, hashed: bytes) -> tuple[bytes, ...]:
        """In the name of every honest client, the same frames for all who are told the same."""
        if hashed not in self.made_up:
            made = (self._signed_by_server(Consistency(name, hashed, ())) for name in self.honest)
            self.made_up[hashed] = tuple(made)
        return self.made_up[hashed]

    def _forged(self, name: str) -> bytes:
        encryption, masking = self.own[name]
        return self._signed_by_server(Advertisement(name, encryption.public, masking.public))

    def _servers(self, name: str) -> frozenset[str]:
        """Whose round keys, as a client was told them, are the server's own."""
        return self.colluders | self.story.forged.get(name, frozenset()) & frozenset(self.honest) - {name}

    def _cipher(self, kind: str, colluder: str, owner: str, holder: str, in_session_of: str) -> ChaCha20Poly1305:
        other = owner if colluder == holder else holder
        peer = self.keys[in_session_of][other][0]
        key = self.own[colluder][0].derive(peer, self.session[in_session_of], f"{kind} share", owner, holder)
        return ChaCha20Poly1305(key)

    def _associated(self, owner: str, holder: str, in_session_of: str) -> bytes:
        return joined(self.session[in_session_of], owner.encode(), holder.encode())
