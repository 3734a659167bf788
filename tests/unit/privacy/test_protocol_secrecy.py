"""What the server may learn of a sum, how much noise is in it, and mutants of both that must be noticed."""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from opacus.accountants import GaussianAccountant
from scipy.stats import chisquare

from fedtalk_ray.messages import MaskedInput, SealedFrom
from fedtalk_ray.privacy import accounting, noise, protocol, secure_client, shamir, wire
from fedtalk_ray.privacy.keys import ExchangeKey, digest
from fedtalk_ray.privacy.masking import Mask
from fedtalk_ray.privacy.protocol import Aborted, Code, Frame, Limits
from fedtalk_ray.privacy.update_codec import UpdateCodec
from fedtalk_ray.settings import PrivacyConfig
from tests.unit.privacy.tampering import EVERYBODY, IMPROBABLE, SKELLAM, Make, advertised_by

if TYPE_CHECKING:
    from tests.unit.privacy.conftest import Exchange


# What the server may learn.


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


def check_uniform(values: np.ndarray) -> None:
    """Every byte value as often as the others."""
    counts = np.bincount(np.ascontiguousarray(values).view(np.uint8), minlength=256)
    assert chisquare(counts).pvalue > IMPROBABLE, "not uniform"


def check_masks(make_exchange: Make) -> None:
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
            check_uniform(one)
            check_uniform(one - another)
        for exchange, (_, _, pairs) in zip(twice, parts, strict=True):
            assert (pairs == pair_masks(exchange, name, length)).all(), "not the specified masks"


def test_masked_vectors_look_uniform_and_masks_are_never_used_twice(make_exchange: Make) -> None:
    check_masks(make_exchange)


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
    with pytest.raises(Aborted) as caught:
        exchange.step(["c03", "c04"])
    assert caught.value.code == Code.CANNOT_UNMASK


# What a client never sends, and how much noise it adds.


@pytest.mark.filterwarnings("ignore:overflow encountered in dot")
@pytest.mark.parametrize("mechanism", [{}, SKELLAM], ids=["without noise", "skellam"])
@pytest.mark.parametrize(
    ("value", "weight"),
    [(np.nan, 1.0), (np.inf, 1.0), (-np.inf, 1.0), (1e300, 1.0), (1.0, np.nan), (1.0, np.inf), (1.0, -1.0)],
)
def test_a_client_refuses_to_send_what_is_not_finite(mechanism: dict[str, Any], value: float, weight: float) -> None:
    codec = UpdateCodec(PrivacyConfig(**mechanism), 1.0 if mechanism else 0.0, 3, 5, Limits(3))
    update = np.array([0.0, value, 0.0])
    with pytest.raises(Aborted) as caught:
        codec.encode(update, weight, 1.0, 5, np.random.default_rng(0))
    assert caught.value.code == Code.NOT_FINITE


def check_noise(survivors: int) -> None:
    """Ten clients, of whom seven must stay and one may know its own part: the sum over seven has z = 2 times a client's
    largest effect, 2^18 steps, as its deviation without that one, and every client adds a sixth of that variance."""
    values = 20_000
    codec = UpdateCodec(PrivacyConfig(**SKELLAM | {"noise_multiplier": 2.0}), 2.0, values, 10, Limits(3))
    rng = np.random.default_rng(survivors)
    still = np.zeros(values, np.float32)
    total = sum(codec.encode(still, 1.0, 1.0, 10, rng).view(np.int32).astype(np.int64) for _ in range(survivors))
    noisy = total[:values] / 2.0**18
    # The estimate of a variance from so many values is off by 1% as a rule.
    assert noisy.var() == pytest.approx(4 * survivors / 6, rel=0.05)
    assert abs(noisy.mean()) < 5 * noisy.std() / math.sqrt(values)


@pytest.mark.parametrize("survivors", [7, 8, 10])
def test_the_noise_in_a_sum_is_what_was_accounted_for(survivors: int) -> None:
    check_noise(survivors)


def check_reference_case() -> None:
    """z = 1, q = 0.01, 1000 rounds, delta = 1e-5: 1.8282 by Google's accountant, 1.8384 by PRV."""
    reference = [accounting.Rounds(accounting.Noise("gaussian", 1.0), 0.01, 1000)]
    assert 1.82 <= accounting.epsilon(reference, 1e-5) <= 1.86


def test_the_reference_case_of_the_accountant() -> None:
    check_reference_case()


def check_weighted_sum(make_exchange: Make) -> None:
    """Client k gives k times its update: the sum is the weighted one, dropouts or not."""
    updates = {name: np.arange(4, dtype=np.uint32) + place for place, name in enumerate(EVERYBODY)}
    vectors = {name: update * np.uint32(weight_of(name)) for name, update in updates.items()}
    for absent in ([], ["c03"]):
        make_exchange(7, vectors=vectors).finish({"mask": absent})


def weight_of(name: str) -> int:
    return int(name[1:]) + 1


def test_what_is_weighted_before_it_is_masked_sums_up(make_exchange: Make) -> None:
    check_weighted_sum(make_exchange)


# Mutants: what is known to go wrong in such code, and the check above that notices.

Patch = Callable[[pytest.MonkeyPatch], None]


def constant_masks(patch: pytest.MonkeyPatch) -> None:
    """Every stream from one key."""
    apply = Mask._apply

    def one_key(self: Mask, operation: np.ufunc, vector: np.ndarray, keys: tuple[bytes, ...]) -> None:
        apply(self, operation, vector, (bytes(32),) * len(keys))

    patch.setattr(Mask, "_apply", one_key)


def no_masks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Mask, "_apply", lambda self, operation, vector, keys: None)


def no_pairwise_masks(patch: pytest.MonkeyPatch) -> None:
    """The self mask alone, which the server takes off one by one: a stream after a client's first is left out."""
    apply = Mask._apply
    used: set[Mask] = set()

    def first_only(self: Mask, operation: np.ufunc, vector: np.ndarray, keys: tuple[bytes, ...]) -> None:
        if self not in used:
            used.add(self)
            apply(self, operation, vector, keys[:1])

    patch.setattr(Mask, "_apply", first_only)


original_mask = secure_client.SecureClient.mask


def seeds_of_the_plan(patch: pytest.MonkeyPatch) -> None:
    """The self mask from what the server knows."""
    init = secure_client.SecureClient.__init__

    def mutant(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        self._seed = digest(self._context, self._name.encode())

    patch.setattr(secure_client.SecureClient, "__init__", mutant)


def pairs_of_the_session(patch: pytest.MonkeyPatch) -> None:
    """Pairwise masks from names and session, as in the paper's own code: the server can make them all."""
    patch.setattr(
        ExchangeKey,
        "derive",
        lambda self, peer, session, label, one, other: digest(session, label.encode(), one.encode(), other.encode()),
    )


def small_seeds(patch: pytest.MonkeyPatch) -> None:
    """Keys folded to 32 bits, as in Flower's SecAgg+."""
    apply = Mask._apply

    def folded(self: Mask, operation: np.ufunc, vector: np.ndarray, keys: tuple[bytes, ...]) -> None:
        apply(self, operation, vector, tuple(key[:4] + bytes(28) for key in keys))

    patch.setattr(Mask, "_apply", folded)


@pytest.mark.parametrize(
    ("mutate", "reason"),
    [
        (constant_masks, "the same mask twice"),
        (no_masks, "the same mask twice"),
        (seeds_of_the_plan, "the same mask twice"),
        (no_pairwise_masks, "the same mask twice"),
        (pairs_of_the_session, "not the specified masks"),
        (small_seeds, "not the specified masks"),
    ],
)
def test_masks_that_the_server_could_make_are_noticed(
    make_exchange: Make, monkeypatch: pytest.MonkeyPatch, mutate: Patch, reason: str
) -> None:
    with monkeypatch.context() as patch:
        mutate(patch)
        with pytest.raises(AssertionError, match=reason):
            check_masks(make_exchange)
    check_masks(make_exchange)


def test_noise_divided_by_twenty_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = noise.skellam
    with monkeypatch.context() as patch:
        patch.setattr(noise, "skellam", lambda *arguments: whole(*arguments) // 20)
        with pytest.raises(AssertionError):
            check_noise(7)
    check_noise(7)


def test_a_mask_that_is_put_on_before_the_weight_is_noticed(
    make_exchange: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the masks are weighted too, and do not cancel."""

    def mutant(self: Any, frame: bytes, vector: np.ndarray) -> bytes:
        weight = np.uint32(weight_of(self._name))
        outer = wire.decode(Frame, original_mask(self, frame, vector // weight))
        masked = wire.decode(MaskedInput, outer.body)
        return protocol.seal_frame(self._key, self._context, replace(masked, vector=masked.vector * weight))

    with monkeypatch.context() as patch:
        patch.setattr(secure_client.SecureClient, "mask", mutant)
        with pytest.raises(AssertionError):
            check_weighted_sum(make_exchange)
    check_weighted_sum(make_exchange)


@pytest.mark.filterwarnings("ignore:GDP accounting is experimental")
def test_the_accountant_that_reports_too_little_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GDP accountant says 1.6177 where 1.83 is right."""

    def too_little(parts: tuple[tuple[float, float, int], ...], delta: float) -> float:
        accountant = GaussianAccountant()
        accountant.history = list(parts)
        return float(accountant.get_epsilon(delta))

    with monkeypatch.context() as patch:
        patch.setattr(accounting, "_gaussian_epsilon", too_little)
        reference = [accounting.Rounds(accounting.Noise("gaussian", 1.0), 0.01, 1000)]
        assert accounting.epsilon(reference, 1e-5) == pytest.approx(1.6177, abs=1e-3)
        with pytest.raises(AssertionError):
            check_reference_case()
