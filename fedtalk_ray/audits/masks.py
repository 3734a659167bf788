"""Whether the server can make a mask itself, from what it saw or can derive: the search of `server_saw`.

Guarantee that is attacked: a masked vector y = x + PRG(b) +/- sum PRG(s_uv) mod 2^32 hides x as long as the server has
neither b nor the s_uv. In a sound exchange it learns the seeds b of the survivors at the last stage, on purpose, and
takes those masks off; the pairwise masks must then still hide each x.

The attacker here keeps every frame, opens the seeds from the shares as the server does, and tries as secrets what lies
in the frames and hashes of all that is public. It has its own cipher call, so that a mask that is not made from the
whole opened seed is noticed too.
"""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from hashlib import sha256
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from scipy.special import chdtrc

from fedtalk_ray.audits.recorded_exchange import Exchange
from fedtalk_ray.federation.secure_aggregator import limits_of
from fedtalk_ray.messages import TO_SERVER
from fedtalk_ray.privacy import protocol, shamir
from fedtalk_ray.privacy.keys import KEY_BYTES, digest
from fedtalk_ray.privacy.wire import decode

PREFIX = 4096
"""Values of a vector that guessed pairwise masks are tried on: every rule needs a stream for every pair."""

Pair = Callable[[str, str], bytes]
"""The key of two clients' mask, 32 bytes; their names come sorted."""


class View:
    """What the server has of one exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.messages: dict[str, dict[str, Any]] = {}
        for stage, frames in exchange.frames.items():
            opened: list[Any] = [decode(TO_SERVER[stage], decode(protocol.Frame, data).body) for data in frames]
            self.messages[stage] = {message.client: message for message in opened}
        self.limits = limits_of(exchange.config.privacy)
        self.context = protocol.context_of(exchange.plan, exchange.roster)
        keys = {
            name: (message.encryption_key, message.masking_key) for name, message in self.messages["advertise"].items()
        }
        self._keys = keys
        self.session = protocol.session_of(self.context, keys)
        self._points = protocol.points(keys)

    @property
    def masked(self) -> dict[str, np.ndarray]:
        """Each client's masked vector, uint32 [D + 2]."""
        return {name: message.vector for name, message in self.messages.get("mask", {}).items()}

    @cached_property
    def holders(self) -> dict[str, set[str]]:
        """Those whom each client dealt shares of its key, itself left out."""
        dealt = self.messages.get("share", {}).items()
        return {owner: {share.holder for share in message.shares} - {owner} for owner, message in dealt}

    def partners(self, name: str) -> set[str]:
        """Those with whom a client masks: of those who dealt shares its holders, and whose it holds."""
        return {other for other in self.holders if other in self.holders[name] or name in self.holders[other]}

    @cached_property
    def seeds(self) -> dict[str, bytes]:
        """Self-mask seeds that the shares of the last stage give, by client."""
        shares: dict[str, dict[int, bytes]] = {}
        for holder, message in self.messages.get("unmask", {}).items():
            for share in message.self_mask_shares:
                shares.setdefault(share.owner, {})[self._points[holder]] = share.value
        needed = self.limits.threshold(len(self.exchange.plan.cohort))
        enough = {owner: dict(sorted(held.items())[:needed]) for owner, held in shares.items() if len(held) >= needed}
        return {owner: shamir.reconstruct(held) for owner, held in enough.items()}

    def opened_twice(self) -> list[str]:
        """Clients of whom the server could open both secrets: then it has their vectors."""
        needed = self.limits.threshold(len(self.exchange.plan.cohort))
        revealed: dict[str, int] = {}
        for message in self.messages.get("unmask", {}).values():
            for share in message.masking_key_shares:
                revealed[share.owner] = revealed.get(share.owner, 0) + 1
        return sorted(owner for owner, count in revealed.items() if count >= needed and owner in self.seeds)

    def rest(self, name: str) -> np.ndarray:
        """uint32 [D + 2]: a client's masked vector without its self mask; its pairwise masks are still on it."""
        masked = self.masked[name]
        return masked - stream(self.seeds[name], len(masked))

    def known_seed(self, name: str) -> str | None:
        """How the server has this client's seed before the last stage opens it, in words; None where it has it not."""
        seed = self.seeds[name]
        for stage, frames in self.exchange.frames.items():
            if stage != "unmask" and any(seed in data for data in frames):
                return f"it was sent in the clear at the stage {stage}"
        if seed in self.derived(name):
            return "it is a hash of what the server knows"
        return None

    def without_guessed_pairs(self, name: str) -> Iterator[tuple[str, np.ndarray]]:
        """For every rule by which the server could make all pairwise masks: the rule, and what they leave of `rest`."""
        rest = self.rest(name)[:PREFIX]
        partners = self.partners(name)
        for rule, key in self._rules():
            left = rest.copy()
            for other in partners:
                mask = stream(key(*sorted((name, other))), len(left))
                left = left - mask if name < other else left + mask
            yield rule, left

    def _public(self) -> dict[str, bytes]:
        """What the exchange is about."""
        plan = self.exchange.plan
        number = {"exchange": plan.exchange, "round": plan.round}
        return {
            "session": self.session,
            "context": self.context,
            "run": plan.run.encode(),
            "backbone": plan.backbone,
            "shared parameters": plan.shared,
            "configuration": plan.config,
            **{name: value.to_bytes(8, "big") for name, value in number.items()},
            "nothing": b"",
        }

    def derived(self, name: str) -> set[bytes]:
        """Hashes of one thing or two that the server knows, with the client's name or without."""
        public = list(self._public().values())
        sent = [
            value
            for stage, message in self.messages.items()
            if stage != "unmask" and name in message
            for value in byte_fields(message[name])
        ]
        client = name.encode()
        singles = [*public, *sent]
        pairs = [(one, two) for one in public for two in singles]
        made: set[bytes] = set()
        for parts in [*((value,) for value in singles), *pairs]:
            for whole in (parts, (*parts, client), (client, *parts)):
                made |= {digest(*whole), _concatenated(*whole)}
        return made

    def _rules(self) -> Iterator[tuple[str, Pair]]:
        """From public values and the pair's names or public keys, with the protocol's label or without; and from what
        one of the two dealt the other in sight of the server."""
        names = {name: name.encode() for name in self._keys}
        masking = {name: pair[1] for name, pair in self._keys.items()}
        for what, value in self._public().items():
            for label in (b"", b"mask"):
                start = tuple(part for part in (value, label) if part)
                for whose, ids in (("names", names), ("public keys", masking)):
                    for hashed in (digest, _concatenated):
                        yield f"{what} and {whose}", partial(_from_public, hashed, start, ids)
        dealt = {
            (owner, share.holder): share
            for owner, message in self.messages["share"].items()
            for share in message.shares
        }
        for field in ("commitment", "ciphertext"):
            for turned in (False, True):
                yield f"the {field} that one dealt the other", partial(_from_dealt, dealt, field, turned)


def _concatenated(*parts: bytes) -> bytes:
    return sha256(b"".join(parts)).digest()


def _from_public(
    hashed: Callable[..., bytes], start: tuple[bytes, ...], ids: dict[str, bytes], one: str, two: str
) -> bytes:
    return hashed(*start, ids[one], ids[two])


def _from_dealt(dealt: dict[tuple[str, str], Any], field: str, turned: bool, one: str, two: str) -> bytes:
    # On a sparse graph perhaps only the other one dealt.
    share = dealt.get((two, one) if turned else (one, two)) or dealt[(one, two) if turned else (two, one)]
    return bytes(getattr(share, field)[:KEY_BYTES])


def stream(key: bytes, length: int) -> np.ndarray:
    """The mask of a key, uint32 [length]: AES-256-CTR from zero."""
    data = Cipher(AES256(key), CTR(bytes(16))).encryptor().update(bytes(4 * length))
    return np.frombuffer(data, "<u4")


def uniform_p(vector: np.ndarray) -> float:
    """The chi-squared test's p value for the bytes of a uint32 vector being uniform."""
    counts = np.bincount(np.ascontiguousarray(vector).view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    # The formula itself: scipy.stats.chisquare takes a millisecond to look at its arguments, and there are thousands.
    return float(chdtrc(255, np.sum((counts - expected) ** 2) / expected))


def byte_fields(message: Any) -> Iterator[bytes]:
    """Every bytes field of a message and of its parts."""
    for value in vars(message).values():
        if isinstance(value, bytes):
            yield value
        elif isinstance(value, tuple):
            for part in value:
                yield from byte_fields(part)
