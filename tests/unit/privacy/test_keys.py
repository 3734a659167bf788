"""Keys: a signature holds for one context, type and body; derived keys for one session, label and direction."""

import hashlib
import hmac
import os
import stat
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedtalk_ray.errors import RunError
from fedtalk_ray.privacy.keys import ExchangeKey, SigningKey, digest, is_usable, joined, verify

SECRET = bytes(range(1, 33))

PRIME = 2**255 - 19
SMALL_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,  # of order 8
    39382357235489614581723060781553021112529911719440698176882885853963445705823,  # of order 8
    PRIME - 1,
    PRIME,
    PRIME + 1,
]
"""X25519 public keys with which every secret gives zero (RFC 7748, section 6.1)."""


def test_the_public_signing_key_is_the_standards() -> None:
    """RFC 8032, section 7.1, test 1."""
    signing = SigningKey(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert signing.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_a_signature_holds_for_its_context_type_and_body_only() -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    signature = key.sign(b"context", "Kind", b"body")
    assert len(signature) == 64
    assert verify(key.public, b"context", "Kind", b"body", signature)
    assert verify(key.public, b"context", "Kind", memoryview(b"body"), signature)
    assert not verify(other.public, b"context", "Kind", b"body", signature)
    assert not verify(key.public, b"Context", "Kind", b"body", signature)
    assert not verify(key.public, b"context", "Kinds", b"body", signature)
    assert not verify(key.public, b"context", "Kind", b"Body", signature)
    assert not verify(key.public, b"context", "Kind", b"", signature)


def test_nothing_can_move_from_one_signed_part_to_the_next() -> None:
    """ctx || type || body without lengths would be the same bytes for all of these."""
    key = SigningKey.generate()
    signature = key.sign(b"ab", "cd", b"ef")
    for context, kind, body in [(b"abc", "d", b"ef"), (b"a", "bcd", b"ef"), (b"ab", "c", b"def"), (b"ab", "cde", b"f")]:
        assert not verify(key.public, context, kind, body, signature)


def test_an_altered_signature_or_key_is_false_and_never_an_error() -> None:
    key = SigningKey(SECRET)
    signature = key.sign(b"c", "k", b"b")
    for place in range(64):
        altered = bytearray(signature)
        altered[place] ^= 1
        assert not verify(key.public, b"c", "k", b"b", bytes(altered))
    for damaged in (b"", signature[:-1], signature + b"\0", bytes(64)):
        assert not verify(key.public, b"c", "k", b"b", damaged)
    for public in (b"", key.public[:-1], key.public + b"\0", b"\xff" * 32):
        assert not verify(public, b"c", "k", b"b", signature)


def test_fresh_keys_differ() -> None:
    assert (
        len({SigningKey.generate().secret for _ in range(20)} | {ExchangeKey.generate().secret for _ in range(20)})
        == 40
    )


def test_no_secret_shows_in_a_repr() -> None:
    for key in (SigningKey(SECRET), ExchangeKey(SECRET)):
        for shown in (repr(key), str(key), f"{key}", repr([key]), repr({"key": key})):
            assert "secret" not in shown and SECRET.hex() not in shown and repr(SECRET)[2:-1] not in shown


def test_a_kept_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "client" / "deep" / "signing.key"
    before = os.umask(0)
    try:
        first = SigningKey.kept_in(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == first.secret and len(first.secret) == 32
    assert SigningKey.kept_in(path) == first
    assert [file.name for file in path.parent.iterdir()] == ["signing.key"]
    assert SigningKey.kept_in(tmp_path / "another.key") != first


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_damaged_key_file_is_an_error_and_stays_as_it_is(tmp_path: Path, size: int) -> None:
    """A new key in its place would silently be another client."""
    path = tmp_path / "signing.key"
    path.write_bytes(bytes(size))
    with pytest.raises(RunError, match=f"signing.key is damaged: it holds {size} bytes, not 32"):
        SigningKey.kept_in(path)
    assert path.read_bytes() == bytes(size)


def test_both_sides_derive_the_same_key_and_nobody_else() -> None:
    one, two, third = ExchangeKey.generate(), ExchangeKey.generate(), ExchangeKey.generate()
    key = one.derive(two.public, b"session", "mask", "a", "b")
    assert len(key) == 32
    assert two.derive(one.public, b"session", "mask", "a", "b") == key
    assert third.derive(one.public, b"session", "mask", "a", "b") != key
    assert third.derive(two.public, b"session", "mask", "a", "b") != key


def test_a_derived_key_is_of_one_session_label_and_order() -> None:
    one, peer = ExchangeKey(SECRET), ExchangeKey(SECRET[::-1]).public
    derived = [
        one.derive(peer, *arguments)
        for arguments in [
            (b"session", "mask", "a", "b"),
            (b"another", "mask", "a", "b"),
            (b"session", "share", "a", "b"),
            (b"session", "mask", "b", "a"),
            (b"session", "mask", "ab", ""),
            (b"session", "mask", "", "ab"),
            (b"session", "maska", "", "b"),
        ]
    ]
    for left, right in combinations(derived, 2):
        assert left != right


def test_derivation_by_hand() -> None:
    """X25519's first test vector (RFC 7748, section 5.2), then HKDF (RFC 5869) written out with HMAC."""
    key = ExchangeKey(bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"))
    peer = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    shared = bytes.fromhex("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
    extracted = hmac.digest(b"session", shared, "sha256")
    info = b"\0\0\0\4mask" + b"\0\0\0\1a" + b"\0\0\0\2bc"
    assert key.derive(peer, b"session", "mask", "a", "bc") == hmac.digest(extracted, info + b"\1", "sha256")


@pytest.mark.parametrize("number", SMALL_ORDER)
def test_a_peers_key_of_small_order_is_refused(number: int) -> None:
    """The shared secret would be zero, and the derived key known to everybody who sees the session."""
    with pytest.raises(ValueError):
        ExchangeKey.generate().derive(number.to_bytes(32, "little"), b"session", "mask", "a", "b")
    assert not is_usable(number.to_bytes(32, "little"))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_peers_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError):
        ExchangeKey.generate().derive(b"\x09" * size, b"session", "mask", "a", "b")
    assert not is_usable(b"\x09" * size)


def test_every_honest_key_is_usable() -> None:
    assert all(is_usable(ExchangeKey.generate().public) for _ in range(20))


parts = st.lists(st.binary(max_size=5) | st.sampled_from([b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\1a"]), max_size=4)


@settings(max_examples=60, deadline=None)
@given(first=parts, second=parts)
@example([b"ab", b"c"], [b"a", b"bc"])
@example([b"abc"], [b"abc", b""])
@example([], [b""])
@example([b"\0\0\0\0"], [b"", b""])
def test_no_two_lists_of_parts_are_joined_to_the_same_bytes(first: list[bytes], second: list[bytes]) -> None:
    assert (joined(*first) == joined(*second)) == (first == second)
    assert (digest(*first) == digest(*second)) == (first == second)


@settings(max_examples=60, deadline=None)
@given(expected=parts)
def test_joined_parts_can_be_taken_apart_again(expected: list[bytes]) -> None:
    """Whatever can be read back was injective."""
    rest, found = joined(*expected), []
    while rest:
        length = int.from_bytes(rest[:4], "big")
        found.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    assert found == expected


def test_a_digest_is_sha256_of_the_joined_parts() -> None:
    assert digest(b"a", b"bc") == hashlib.sha256(b"\0\0\0\1a\0\0\0\2bc").digest()
