"""Keys: a signature holds for one context, type and body; derived keys for one session, label and direction."""

import hashlib
import hmac
import os
import stat
from pathlib import Path

import pytest

from fedtalk_ray.errors import RunError
from fedtalk_ray.privacy.keys import ExchangeKey, SigningKey, digest, is_usable, verify

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
    """Nothing can move from one part to the next either."""
    key, other = SigningKey.generate(), SigningKey.generate()
    signature = key.sign(b"ab", "cd", b"ef")
    assert len(signature) == 64 and key != other
    assert verify(key.public, b"ab", "cd", b"ef", signature)
    assert verify(key.public, b"ab", "cd", memoryview(b"ef"), signature)
    assert not verify(other.public, b"ab", "cd", b"ef", signature)
    others = [(b"Ab", "cd", b"ef"), (b"ab", "cD", b"ef"), (b"ab", "cd", b"Ef"), (b"ab", "cd", b"")]
    moved = [(b"abc", "d", b"ef"), (b"a", "bcd", b"ef"), (b"ab", "c", b"def"), (b"ab", "cde", b"f")]
    for context, kind, body in others + moved:
        assert not verify(key.public, context, kind, body, signature)


def test_an_altered_signature_or_key_is_false_and_never_an_error() -> None:
    key = SigningKey(SECRET)
    signature = key.sign(b"c", "k", b"b")
    for place in range(0, 64, 7):
        altered = bytearray(signature)
        altered[place] ^= 1
        assert not verify(key.public, b"c", "k", b"b", bytes(altered))
    for damaged in (b"", signature[:-1], signature + b"\0", bytes(64)):
        assert not verify(key.public, b"c", "k", b"b", damaged)
    for public in (b"", key.public[:-1], key.public + b"\0", b"\xff" * 32):
        assert not verify(public, b"c", "k", b"b", signature)


def test_no_secret_shows_in_a_repr() -> None:
    for key in (SigningKey(SECRET), ExchangeKey(SECRET)):
        for shown in (repr(key), str(key), repr([key])):
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


@pytest.mark.parametrize("size", [0, 33])
def test_a_damaged_key_file_is_an_error_and_stays_as_it_is(tmp_path: Path, size: int) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(bytes(size))
    with pytest.raises(RunError, match=f"signing.key is damaged: it holds {size} bytes, not 32"):
        SigningKey.kept_in(path)
    assert path.read_bytes() == bytes(size)


def test_a_derived_key_is_of_one_session_label_and_order() -> None:
    one, other = ExchangeKey(SECRET), ExchangeKey(SECRET[::-1])
    peer = other.public
    assert other.derive(one.public, b"session", "mask", "a", "b") == one.derive(peer, b"session", "mask", "a", "b")
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
    assert len(set(derived)) == len(derived)


def test_derivation_by_hand() -> None:
    """X25519's first test vector (RFC 7748, section 5.2), then HKDF (RFC 5869) written out with HMAC."""
    key = ExchangeKey(bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"))
    peer = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    shared = bytes.fromhex("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
    extracted = hmac.digest(b"session", shared, "sha256")
    info = b"\0\0\0\4mask" + b"\0\0\0\1a" + b"\0\0\0\2bc"
    assert key.derive(peer, b"session", "mask", "a", "bc") == hmac.digest(extracted, info + b"\1", "sha256")


def test_a_peers_key_of_small_order_or_another_length_is_refused() -> None:
    """The shared secret would be zero, and the derived key known to everybody who sees the session."""
    for key in (*(number.to_bytes(32, "little") for number in SMALL_ORDER), b"", b"\x09" * 31, b"\x09" * 33):
        with pytest.raises(ValueError):
            ExchangeKey.generate().derive(key, b"session", "mask", "a", "b")
        assert not is_usable(key)
    assert is_usable(ExchangeKey.generate().public)


def test_a_digest_is_sha256_of_the_joined_parts() -> None:
    assert digest(b"a", b"bc") == hashlib.sha256(b"\0\0\0\1a\0\0\0\2bc").digest()
