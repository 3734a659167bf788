"""The attack on the wire: a sound exchange stands it, and every planted way of giving an update away is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from fedtalk_ray.audits.attack import Outcome, Round
from fedtalk_ray.audits.attacks import server_saw as wire_attack
from fedtalk_ray.audits.attacks.server_saw import attack, unlisted
from fedtalk_ray.audits.effort import FAST
from fedtalk_ray.audits.masks import uniform_p
from fedtalk_ray.messages import Advertisement, Consistency, MaskedInput, Share, Unmasking
from fedtalk_ray.privacy import noise, protocol, secure_client, update_codec, wire
from fedtalk_ray.privacy.keys import ExchangeKey, digest
from fedtalk_ray.privacy.masking import Mask
from fedtalk_ray.privacy.protocol import Frame

Make = Callable[..., Round]
Patch = Callable[[pytest.MonkeyPatch], None]


def audit(audited: Round) -> Outcome:
    return attack(SimpleNamespace(round=audited), FAST)


def figures(outcome: Outcome) -> dict[str, float]:
    return {figure.name: figure.value for figure in outcome.figures}


def test_a_sound_exchange_without_noise_stands_it(make_round: Make) -> None:
    outcome = audit(make_round())
    assert outcome.failures() == []
    found = figures(outcome)
    assert found["fields that are not on the list"] == 0
    assert found["self-mask seeds that the server has before they are opened"] == 0
    assert 0 < found["error of the opened mean over the stated bound"] < 1
    assert 0 < found["largest correlation of a masked vector with its update"] < 0.12
    assert len(outcome.series["p values of masked bytes"]) == 9 + 9 + 8


def test_a_sound_exchange_with_noise_stands_it(make_round: Make, skellam: dict[str, Any]) -> None:
    outcome = audit(make_round(**skellam))
    assert outcome.failures() == []
    found = figures(outcome)
    assert found["noise in the opened mean over what is configured"] == pytest.approx(1, abs=0.1)
    assert found["opened mean along the true one, in deviations of the noise"] < 6


def test_noise_that_the_server_adds_is_measured_too(make_round: Make, skellam: dict[str, Any]) -> None:
    privacy = skellam["privacy"] | {"mechanism": "gaussian", "insecure_min_survivors": 3}
    outcome = audit(make_round(5, privacy=privacy))
    assert outcome.failures() == []
    assert figures(outcome)["noise in the opened mean over what is configured"] == pytest.approx(1, abs=0.1)


def test_under_plain_aggregation_the_server_has_what_it_is_sent(make_round: Make) -> None:
    outcome = audit(make_round(aggregation="plain", slots={"count": 4}))
    assert outcome.failures() == [], "nothing was promised"
    assert figures(outcome) == {
        "correlation of a chunk of one client with its true update": pytest.approx(1.0),
        "clients in a chunk's sum, at most": 3,
    }
    assert "Nothing is promised against the server" in outcome.notes[0]


# Planted bugs.


def weighted_after_masking(patch: pytest.MonkeyPatch) -> None:
    """The mask is put on before the weight, as in the paper's own code: masks are weighted too and do not cancel."""
    mask = secure_client.SecureClient.mask

    def mutant(self: Any, frame: bytes, vector: np.ndarray) -> bytes:
        weight = np.uint32(int(self._name[1:]) + 1)
        masked = wire.decode(MaskedInput, wire.decode(Frame, mask(self, frame, vector // weight)).body)
        return protocol.seal_frame(self._key, self._context, replace(masked, vector=masked.vector * weight))

    patch.setattr(secure_client.SecureClient, "mask", mutant)


def seeds_from(make: Callable[[Any], bytes]) -> Patch:
    def plant(patch: pytest.MonkeyPatch) -> None:
        init = secure_client.SecureClient.__init__

        def mutant(self: Any, *arguments: Any) -> None:
            init(self, *arguments)
            self._seed = make(self)

        patch.setattr(secure_client.SecureClient, "__init__", mutant)

    return plant


seeds_of_the_plan = seeds_from(lambda client: digest(client._context, client._name.encode()))
seeds_of_the_public_keys = seeds_from(lambda client: digest(client._context, client._masking.public))
seeds_of_the_signing_key = seeds_from(lambda client: digest(client._key.secret, client._context))


def seeds_in_the_clear(patch: pytest.MonkeyPatch) -> None:
    """The seed takes the place of the commitment to it."""
    patch.setattr(protocol, "seed_commitment", lambda session, owner, seed: seed)


def pairs_from(make: Callable[..., bytes]) -> Patch:
    return lambda patch: patch.setattr(ExchangeKey, "derive", make)


def of_the_session(own: Any, peer: bytes, session: bytes, label: str, one: str, other: str) -> bytes:
    return digest(session, label.encode(), one.encode(), other.encode())


def repeating_pairs(own: Any, peer: bytes, session: bytes, label: str, one: str, other: str) -> bytes:
    """Of the names and a secret that all clients were given once: not to be guessed, but the same in every exchange."""
    return digest(b"a secret of the clients", one.encode(), other.encode())


def apply_as(change: Callable[[Any, bytes], bytes | None]) -> Patch:
    """Masks from other keys than are asked for; None for no mask."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        apply = Mask._apply

        def mutant(self: Mask, operation: np.ufunc, vector: np.ndarray, keys: tuple[bytes, ...]) -> None:
            used = (change(self, key) for key in keys)
            apply(self, operation, vector, tuple(key for key in used if key is not None))

        patch.setattr(Mask, "_apply", mutant)

    return plant


def no_pairwise_masks(patch: pytest.MonkeyPatch) -> None:
    """The self mask alone, which the server takes off one by one: a stream after the first is left out."""
    used: set[Mask] = set()

    def first_only(mask: Mask, key: bytes) -> bytes | None:
        if mask in used:
            return None
        used.add(mask)
        return key

    apply_as(first_only)(patch)


def both_secrets_of_a_survivor(patch: pytest.MonkeyPatch) -> None:
    """Clients open the masking keys of survivors beside the seeds of their self masks."""
    unmask = secure_client.SecureClient.unmask

    def mutant(self: Any, frame: bytes) -> bytes:
        shares = tuple(Share(owner, held) for owner, held in sorted(self._held_keys.items()))
        told = wire.decode(Unmasking, wire.decode(Frame, unmask(self, frame)).body)
        return protocol.seal_frame(self._key, self._context, replace(told, masking_key_shares=shares))

    patch.setattr(secure_client.SecureClient, "unmask", mutant)


def twenty_times_too_heavy(patch: pytest.MonkeyPatch) -> None:
    """After the clipping, and so that the sum is still one that the server believes."""
    clip = update_codec.weigh_and_clip

    def mutant(update: np.ndarray, weight: float, clip_norm: float) -> tuple[np.ndarray, bool]:
        clipped, bound = clip(update, weight, clip_norm)
        return 20 * clipped, bound

    patch.setattr(update_codec, "weigh_and_clip", mutant)
    patch.setattr(update_codec, "to_integers", without_a_bound(update_codec.to_integers))


def without_a_bound(to_integers: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda values, scale, rng, norm: to_integers(values, scale, rng, 100 * norm)


PLANTED = {
    "mask before weight": (weighted_after_masking, "masks do not cancel"),
    "seed of the plan": (seeds_of_the_plan, "the mask seed is known to the server: it is a hash of what"),
    "seed of public keys": (seeds_of_the_public_keys, "the mask seed is known to the server: it is a hash of what"),
    "seed that repeats": (seeds_of_the_signing_key, "the mask seed is known to the server: it is the same in two"),
    "seed in the clear": (seeds_in_the_clear, "the mask seed is known to the server: it was sent in the clear"),
    "pairs of the session": (
        pairs_from(of_the_session),
        "the mask seed of a pair is known to the server: from session",
    ),
    "pairs that repeat": (pairs_from(repeating_pairs), "pairwise masks repeat"),
    "no masks": (apply_as(lambda mask, key: None), "masked vectors are not uniform"),
    "no pairwise masks": (no_pairwise_masks, "nothing hides a vector when its self mask is off"),
    "one mask for all": (apply_as(lambda mask, key: bytes(32)), "masks repeat in two exchanges"),
    "both secrets": (both_secrets_of_a_survivor, "both secrets of s0 were opened"),
    "keys of 32 bits": (apply_as(lambda mask, key: key[:4] + bytes(28)), "masks do not cancel"),
}


@pytest.mark.parametrize(("plant", "says"), PLANTED.values(), ids=PLANTED)
def test_a_planted_bug_is_named(few: Round, monkeypatch: pytest.MonkeyPatch, plant: Patch, says: str) -> None:
    plant(monkeypatch)
    failures = audit(few).failures()
    assert [line for line in failures if line.startswith(f"server_saw: {says}")], failures


WITH_NOISE = {
    "a twentieth of the noise": (
        lambda patch: patch.setattr(noise, "skellam", divided(noise.skellam)),
        "the opened mean has 0.0",
    ),
    "weights after clipping": (twenty_times_too_heavy, "the opened mean is not the survivors'"),
}


def divided(skellam: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda *arguments: skellam(*arguments) // 20


@pytest.mark.parametrize(("plant", "says"), WITH_NOISE.values(), ids=WITH_NOISE)
def test_a_planted_bug_under_noise_is_named(
    make_round: Make, monkeypatch: pytest.MonkeyPatch, skellam: dict[str, Any], plant: Patch, says: str
) -> None:
    plant(monkeypatch)
    privacy = skellam["privacy"] | {"insecure_min_survivors": 3}
    failures = audit(make_round(5, privacy=privacy)).failures()
    assert [line for line in failures if line.startswith(f"server_saw: {says}")], failures


# Frames that hold more.


@dataclass(frozen=True)
class Talkative:
    """A `Consistency` with one field more."""

    client: str
    survivors: bytes
    loss: float


def framed(message: Any, kind: str, more: bytes = b"") -> bytes:
    return wire.encode(Frame(kind, wire.encode(message) + more, bytes(64)))


KEY = bytes(32)
GOOD = framed(Consistency("a", KEY, (1,)), "Consistency")


@pytest.mark.parametrize(
    ("stage", "data", "says"),
    [
        ("confirm", GOOD, None),
        ("mask", framed(MaskedInput("a", np.zeros(5, np.uint32), bytes(32), ()), "MaskedInput"), None),
        ("confirm", GOOD + b"x", "the frame of confirm is no Consistency"),
        ("confirm", framed(Consistency("a", KEY, ()), "Consistency", b"x"), "the frame of confirm is no Consistency"),
        ("confirm", framed(Talkative("a", KEY, 0.5), "Consistency"), "the frame of confirm is no Consistency"),
        ("confirm", framed(Consistency("a", KEY + b"x", ()), "Consistency"), "Consistency.survivors of 33 bytes"),
        ("confirm", framed(Consistency("a", KEY, (99,)), "Consistency"), "Consistency.complaints names nobody"),
        ("confirm", framed(Consistency("a loss of 0.5", KEY, ()), "Consistency"), "Consistency.client names nobody"),
        ("confirm", framed(Consistency("a", KEY, ()), "a loss of 0.5"), "the frame of confirm is a a loss of 0.5"),
        ("advertise", framed(Advertisement("a", KEY, b""), "Advertisement"), "Advertisement.masking_key of 0 bytes"),
        (
            "mask",
            framed(MaskedInput("a", np.zeros(6, np.uint32), bytes(32), ()), "MaskedInput"),
            "MaskedInput.vector of 6 values",
        ),
    ],
)
def test_what_is_not_listed_is_found_in_a_frame(stage: str, data: bytes, says: str | None) -> None:
    found = unlisted(stage, data, ("a", "b"), 5)
    assert found == [] if says is None else len(found) == 1 and found[0].startswith(says)


def test_a_field_that_a_message_was_given_is_not_on_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol's own code would take it: both sides know the message."""
    monkeypatch.setitem(wire_attack.TO_SERVER, "confirm", Talkative)
    monkeypatch.setitem(wire_attack.FIELDS, Talkative, wire_attack.FIELDS[Consistency])
    data = framed(Talkative("a", KEY, 0.5), "Talkative")
    assert unlisted("confirm", data, ("a", "b"), 5) == ["Talkative.loss"]


# What proves nothing fails.


def test_a_client_whose_update_is_zero_leaves_no_correlation_to_trust(few: Round) -> None:
    few.updates["s2"] = np.zeros_like(few.shared)
    outcome = audit(few)
    assert math.isnan(figures(outcome)["largest correlation of a masked vector with its update"])
    assert any("no finite number" in line for line in outcome.failures())


def test_a_p_value_that_is_no_number_is_never_the_smallest_but_one(few: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([0.5, math.nan])
    monkeypatch.setattr(wire_attack, "uniform_p", lambda vector: next(told, 0.5))
    failures = audit(few).failures()
    assert "server_saw: masked bytes being uniform, smallest p corrected is nan: no finite number" in "".join(failures)


def test_a_round_of_too_few_clients_proves_nothing(make_round: Make) -> None:
    audited = make_round()
    for name in ("s0", "s1"):
        del audited.updates[name]
    assert any("did not reach its end (too few)" in line for line in audit(audited).failures())


def test_the_test_for_uniform_bytes_is_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    for vector in (rng.integers(0, 2**32, 500, np.uint32), np.arange(500, dtype=np.uint32) * np.uint32(2**22)):
        counts = np.bincount(vector.view(np.uint8), minlength=256)
        assert uniform_p(vector) == pytest.approx(chisquare(counts).pvalue, rel=1e-6)


def test_a_client_that_is_refused_is_told_of(few: Round) -> None:
    few.updates["s2"] = np.full_like(few.shared, np.inf)
    assert any("were refused: {'not finite': 3}" in line for line in audit(few).failures())
