"""Masks are AES-256-CTR keystreams added modulo 2^32, whatever the chunks they are computed in."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fedtalk_ray.privacy.masking import Mask

KEY = bytes(range(32))
LENGTHS = [0, 1, 3, 65535, 65536, 65537, 131072, 200000]


def stream(length: int, key: bytes) -> np.ndarray:
    """What is added to a vector."""
    vector = np.zeros(length, np.uint32)
    Mask(length).add(vector, key)
    return vector


@pytest.mark.parametrize("length", LENGTHS)
def test_the_stream_is_the_ciphers_computed_at_once(length: int) -> None:
    expected = Cipher(AES256(KEY), CTR(bytes(16))).encryptor().update(bytes(4 * length))
    assert stream(length, KEY).tobytes() == np.frombuffer(expected, "<u4").astype(np.uint32).tobytes()


def test_many_keys_at_once_are_those_one_by_one() -> None:
    length, keys = 131075, [bytes([number] * 32) for number in range(5)]
    vector, mask = np.full(length, 2**32 - 1, np.uint32), Mask(length)
    mask.add(vector, *keys)
    assert np.array_equal(vector, (2**32 - 1 + sum(stream(length, key).astype(np.uint64) for key in keys)) % 2**32)
    mask.subtract(vector, *keys[1:])
    assert np.array_equal(vector, stream(length, keys[0]) - np.uint32(1))


@pytest.mark.parametrize(
    "vector", [np.zeros(4, np.int32), np.zeros(3, np.uint32), np.zeros(5, np.uint32), np.zeros((4, 1), np.uint32)]
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


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_another_size_is_refused(size: int) -> None:
    """Nothing shorter is stretched, nothing longer folded."""
    vector = np.zeros(4, np.uint32)
    with pytest.raises(ValueError):
        Mask(4).add(vector, bytes(size))
    assert not vector.any()
