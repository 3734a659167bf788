"""What the server may learn of a sum, how much noise is in it, and mutants of both that must be noticed."""

from __future__ import annotations

import hmac
from itertools import combinations

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from scipy.stats import chisquare

from fedtalk_ray.messages import SealedFrom
from fedtalk_ray.privacy import shamir
from fedtalk_ray.privacy.protocol import Code
from tests.unit.privacy.conftest import Exchange, aborts
from tests.unit.privacy.tampering import Make, advertised_by


def stream_of(key: bytes, length: int) -> np.ndarray:
    """AES-256-CTR as uint32, written a second time."""
    return np.frombuffer(Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(4 * length)), "<u4")


def hkdf(secret: bytes, salt: bytes, *info: bytes) -> bytes:
    """RFC 5869 for 32 bytes, with the parts of `info` after their lengths."""
    message = b"".join(len(part).to_bytes(4, "big") + part for part in info)
    return hmac.digest(hmac.digest(salt, secret, "sha256"), message + b"\1", "sha256")


def pair_masks(exchange: Exchange, name: str, length: int) -> np.ndarray:
    """The sum of a client's pairwise masks as the specification has it, from its own secret key."""
    own = X25519PrivateKey.from_private_bytes(exchange.clients[name]._masking.secret)
    total = np.zeros(length, np.uint32)
    for other in exchange.plan.cohort:
        if other != name:
            theirs = X25519PublicKey.from_public_bytes(advertised_by(exchange, other).masking_key)
            low, high = sorted((name, other))
            key = hkdf(own.exchange(theirs), exchange.server.session, b"mask", low.encode(), high.encode())
            total = total + stream_of(key, length) if name < other else total - stream_of(key, length)
    return total


def test_masks_are_the_specified_ones_look_uniform_and_are_never_used_twice(make_exchange: Make) -> None:
    """Twice the same plan and the same vectors, all zero: the self mask, the pairwise masks (what the server is left
    with, once it has opened the self mask) and both together are uniform, new each time, and made from the secrets."""
    length = 4096
    first = make_exchange(4)
    names = first.plan.cohort
    zeros = {name: np.zeros(length, np.uint32) for name in names}
    twice = [make_exchange(4, length=length, people=first.people, vectors=zeros).until("confirm") for _ in range(2)]
    for name in names:
        parts = []
        for exchange in twice:
            masked = exchange.opened(exchange.sent["mask", name]).vector
            own = stream_of(exchange.clients[name]._seed, length)
            parts.append((masked, own, masked - own))
        for one, another in zip(*parts, strict=True):
            assert (one == another).mean() < 0.01, "the same mask twice"
            for values in (one, one - another):
                counts = np.bincount(np.ascontiguousarray(values).view(np.uint8), minlength=256)
                assert chisquare(counts).pvalue > 1e-8, "not uniform"
        for exchange, (_, _, pairs) in zip(twice, parts, strict=True):
            assert (pairs == pair_masks(exchange, name, length)).all(), "not the specified masks"


def share_held(exchange: Exchange, kind: str, owner: str, holder: str) -> bytes:
    """What a holder reads of the share that was sealed for it."""
    dealt = exchange.opened(exchange.sent["mask" if kind == "seed" else "share", owner]).shares
    held: dict[str, bytes] = {}
    for share in dealt:
        if share.holder == holder:
            exchange.clients[holder]._unseal(kind, SealedFrom(owner, share.ciphertext, share.commitment), held)
    return held[owner]


def test_one_share_too_few_opens_nothing(make_exchange: Make) -> None:
    """t = 4 of 5: what three holders have gives neither the seed nor the masking key, and with a fourth both."""
    exchange = make_exchange(5).until("unmask")
    owner, holders = "c00", exchange.plan.cohort[1:]
    client = exchange.clients[owner]
    masked = exchange.opened(exchange.sent["mask", owner]).vector
    rest = masked - pair_masks(exchange, owner, 4)
    for kind, secret in (("seed", client._seed), ("key", client._masking.secret)):
        shares = {exchange.server._points[name]: share_held(exchange, kind, owner, name) for name in holders}
        assert shamir.reconstruct(shares) == secret
        for chosen in combinations(shares, 3):
            few = {point: shares[point] for point in chosen}
            try:
                guess = shamir.reconstruct(few)
            except ValueError:
                continue
            assert guess != secret
            assert kind == "key" or (rest - stream_of(guess, 4) != exchange.vectors[owner]).all()
    assert (rest - stream_of(client._seed, 4) == exchange.vectors[owner]).all()
    with aborts(Code.CANNOT_UNMASK):
        exchange.step(["c03", "c04"])
