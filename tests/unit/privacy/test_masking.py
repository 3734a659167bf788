"""Masks are AES-256-CTR keystreams added modulo 2^32, whatever the chunks they are computed in."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB
from scipy import stats

from fedtalk_ray.privacy.masking import Mask

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
LENGTHS = [0, 1, 3, 1000, 65535, 65536, 65537, 131072, 200000]


def stream(length: int, key: bytes) -> np.ndarray:
    """What is added to a vector."""
    vector = np.zeros(length, np.uint32)
    Mask(length).add(vector, key)
    return vector


@pytest.mark.parametrize("length", LENGTHS)
def test_the_stream_is_the_ciphers_computed_at_once(length: int) -> None:
    expected = Cipher(AES256(KEY), CTR(bytes(16))).encryptor().update(bytes(4 * length))
    assert stream(length, KEY).tobytes() == np.frombuffer(expected, "<u4").astype(np.uint32).tobytes()


def test_the_stream_is_counters_encrypted_one_by_one() -> None:
    """CTR spelled out: block i is AES(key, i as 16 big-endian bytes), read as little-endian values."""
    counters = b"".join(number.to_bytes(16, "big") for number in range(6))
    blocks = Cipher(AES256(KEY), ECB()).encryptor().update(counters)
    assert stream(23, KEY).tolist() == [int.from_bytes(blocks[at : at + 4], "little") for at in range(0, 92, 4)]


@pytest.mark.parametrize("length", LENGTHS)
def test_adding_then_subtracting_changes_nothing(length: int) -> None:
    before = np.random.default_rng(0).integers(0, 2**32, length, dtype=np.uint32)
    vector, mask = before.copy(), Mask(length)
    mask.add(vector, KEY)
    mask.subtract(vector, OTHER)
    assert length == 0 or not np.array_equal(vector, before)
    mask.subtract(vector, KEY)
    mask.add(vector, OTHER)
    assert np.array_equal(vector, before)


def test_sums_wrap_and_one_buffer_serves_all_keys() -> None:
    length = 65540
    vector, mask = np.full(length, 2**32 - 1, np.uint32), Mask(length)
    mask.add(vector, KEY)
    mask.add(vector, OTHER)
    exact = 2**32 - 1 + stream(length, KEY).astype(np.uint64) + stream(length, OTHER)
    assert np.array_equal(vector, exact % 2**32)
    mask.subtract(vector, KEY)
    assert np.array_equal(vector, (2**32 - 1 + stream(length, OTHER).astype(np.uint64)) % 2**32)


def test_many_keys_at_once_are_those_one_by_one() -> None:
    length, keys = 131075, [bytes([number] * 32) for number in range(5)]
    vector, mask = np.zeros(length, np.uint32), Mask(length)
    mask.add(vector, *keys)
    assert np.array_equal(vector, sum(stream(length, key).astype(np.uint64) for key in keys) % 2**32)
    mask.subtract(vector, *keys[1:])
    assert np.array_equal(vector, stream(length, keys[0]))


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(4, np.int32),
        np.zeros(4, np.uint64),
        np.zeros(4, np.float32),
        np.zeros(3, np.uint32),
        np.zeros(5, np.uint32),
        np.zeros((4, 1), np.uint32),
        np.zeros((1, 4), np.uint32),
    ],
)
def test_another_dtype_or_shape_is_refused_and_left_alone(vector: np.ndarray) -> None:
    for apply in (Mask(4).add, Mask(4).subtract):
        with pytest.raises(ValueError, match=r"expected uint32 \[4\]"):
            apply(vector, KEY)
    assert not vector.any()


def test_a_read_only_vector_is_refused() -> None:
    """Arrays out of Ray's object store are; unmasking must work on a copy."""
    vector = np.zeros(4, np.uint32)
    vector.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        Mask(4).add(vector, KEY)
    assert not vector.any()


@pytest.mark.parametrize("size", [0, 4, 16, 31, 33])
def test_a_key_of_another_size_is_refused(size: int) -> None:
    """Nothing shorter is stretched, nothing longer folded."""
    vector = np.zeros(4, np.uint32)
    with pytest.raises(ValueError):
        Mask(4).add(vector, bytes(size))
    assert not vector.any()


@pytest.mark.parametrize("bit", [0, 31, 32, 100, 255])
def test_every_bit_of_the_key_counts(bit: int) -> None:
    """In particular more than the low 32: two keys apart in one bit share no more values than chance allows."""
    flipped = (int.from_bytes(KEY, "big") ^ 1 << bit).to_bytes(32, "big")
    assert (stream(10_000, KEY) == stream(10_000, flipped)).sum() <= 1


def test_streams_of_different_keys_are_uncorrelated() -> None:
    """|r| of independent streams is below 4.5 / sqrt(n), at any shift of one against the other."""
    length = 100_000
    first, second = stream(length, KEY) / 2**32, stream(length, OTHER) / 2**32
    for shift in (0, 1, 4, 16384, 65536 - 4):
        assert abs(np.corrcoef(first, np.roll(second, shift))[0, 1]) < 4.5 / np.sqrt(length)
    for shift in (1, 4, 16384, 65536):  # a chunk must not repeat the one before
        assert abs(np.corrcoef(first, np.roll(first, shift))[0, 1]) < 4.5 / np.sqrt(length)


def test_the_stream_is_uniform() -> None:
    """Each byte of the values, and their upper 12 bits, against equal counts."""
    values = stream(200_000, KEY)
    for part, bins in [*((values >> shift & 255, 256) for shift in (0, 8, 16, 24)), (values >> 20, 4096)]:
        assert stats.chisquare(np.bincount(part, minlength=bins)).pvalue > 1e-4
    assert stats.kstest(values / 2**32, "uniform").pvalue > 1e-4


def test_a_masked_vector_is_uniform_too() -> None:
    """Whatever it held: here only small numbers."""
    vector = (np.arange(200_000) % 7).astype(np.uint32)
    Mask(len(vector)).add(vector, KEY)
    assert stats.chisquare(np.bincount(vector >> 22, minlength=1024)).pvalue > 1e-4
