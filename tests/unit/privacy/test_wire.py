"""Canonical bytes: one encoding for each message, and whatever else arrives is refused without cost."""

import dataclasses
import struct
import tracemalloc
import typing
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedtalk_ray.messages import (
    Advertised,
    Advertisement,
    ClientReport,
    Consistency,
    Delivered,
    MaskedInput,
    Plan,
    SealedShares,
    Survivors,
    Unmasking,
    UnmaskRequest,
)
from fedtalk_ray.privacy.protocol import Frame
from fedtalk_ray.privacy.wire import MalformedMessage, decode, encode

KINDS = [
    Advertisement,
    SealedShares,
    MaskedInput,
    Consistency,
    Unmasking,
    Plan,
    Advertised,
    Delivered,
    Survivors,
    UnmaskRequest,
    Frame,
]

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
few = settings(max_examples=10, deadline=None)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field type, or messages of a dataclass."""
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        types = typing.get_type_hints(hint)
        return st.builds(hint, **{field.name: values_of(types[field.name]) for field in dataclasses.fields(hint)})
    if typing.get_origin(hint) is tuple:
        return st.lists(values_of(typing.get_args(hint)[0]), max_size=3).map(tuple)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(max_size=6),
        bytes: st.binary(max_size=8),
        int: st.integers(0, 2**64 - 1),
        float: st.floats(allow_nan=False),
        np.ndarray: arrays(np.uint32, st.integers(0, 5)),
    }
    return simple[hint]


def plain(value: Any) -> Any:
    """A message as nested tuples, which compare by content even where they hold arrays."""
    if dataclasses.is_dataclass(value):
        return type(value), tuple(plain(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, np.ndarray):
        return str(value.dtype), tuple(value.tolist())
    return tuple(map(plain, value)) if isinstance(value, tuple) else (type(value), value)


@every_kind
@few
@given(data=st.data())
def test_what_was_sent_arrives(kind: type, data: st.DataObject) -> None:
    message = data.draw(values_of(kind))
    assert plain(decode(kind, encode(message))) == plain(message)


@every_kind
@few
@given(data=st.data())
def test_different_messages_have_different_bytes(kind: type, data: st.DataObject) -> None:
    first, second = data.draw(values_of(kind)), data.draw(values_of(kind))
    assert (encode(first) == encode(second)) == (plain(first) == plain(second))


@every_kind
@few
@given(data=st.data())
def test_every_truncation_and_every_byte_too_many_is_refused(kind: type, data: st.DataObject) -> None:
    sent = encode(data.draw(values_of(kind)))
    for wrong in [*(sent[:length] for length in range(len(sent))), *(sent + bytes([byte]) for byte in range(256))]:
        with pytest.raises(MalformedMessage) as refused:
            decode(kind, wrong)
        assert ("follow the message" if len(wrong) > len(sent) else "ends after") in str(refused.value)


@every_kind
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_altered_bytes_are_refused_or_are_another_messages_own(kind: type, data: st.DataObject) -> None:
    """No bytes decode to a message that is not encoded as these very bytes: a signature covers one meaning only."""
    sent = bytearray(encode(data.draw(values_of(kind))))
    if sent:
        changes = st.dictionaries(st.integers(0, len(sent) - 1), st.integers(0, 255) | st.sampled_from([0, 1, 0x7F]))
        for place, byte in data.draw(changes).items():
            sent[place] = byte
    try:
        message = decode(kind, bytes(sent))
    except MalformedMessage:
        return
    assert encode(message) == bytes(sent)


@every_kind
@settings(max_examples=30, deadline=None)
@given(noise=st.binary(max_size=60))
def test_noise_is_refused_or_canonical(kind: type, noise: bytes) -> None:
    try:
        message = decode(kind, noise)
    except MalformedMessage:
        return
    assert encode(message) == noise


def test_the_bytes_of_a_message_by_hand() -> None:
    """Other implementations must be able to rely on these."""
    assert encode(Consistency("é", b"\x00\x01", (5,))) == bytes.fromhex(
        "00000002 c3a9 00000002 0001 00000001 0000000000000005"
    )
    masked = MaskedInput("a", np.array([1, 2**32 - 2], np.uint32), b"\x07", ())
    assert encode(masked) == bytes.fromhex("00000001 61 00000002 01000000 feffffff 00000001 07 00000000")
    plan = Plan("r", 1, 258, b"", b"\xff", b"", 1.5, ("a", ""), ("z",), 2.0)
    expected = "00000001 72 0000000000000001 0000000000000102 00000000 00000001 ff 00000000 3ff8000000000000"
    assert encode(plan) == bytes.fromhex(
        expected + "00000002 00000001 61 00000000 00000001 00000001 7a 4000000000000000"
    )


@pytest.mark.parametrize("bits", ["8000000000000000", "7ff8000000000123", "7ff0000000000001", "fff0000000000000"])
def test_odd_floats_keep_every_bit(bits: str) -> None:
    """Minus zero, NaNs with a payload, infinities: equal or unequal as numbers, they are different bytes."""
    plan = encode(Plan("r", 1, 1, b"", b"", b"", 0.0, ()))
    sent = plan[:-8] + bytes.fromhex(bits)
    assert encode(decode(Plan, sent)) == sent


@pytest.mark.parametrize("text", [b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
def test_text_that_is_not_utf8_is_refused(text: bytes) -> None:
    """Among them a long form of NUL, a surrogate, and a number beyond Unicode: second ways to write something."""
    with pytest.raises(MalformedMessage, match="not UTF-8"):
        decode(Consistency, struct.pack(">I", len(text)) + text + bytes(4))


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (Survivors, b"\xff\xff\xff\xff" + struct.pack(">I", 1) + b"a"),
        (Survivors, struct.pack(">I", 1) + b"\xff\xff\xff\xff" + b"a"),
        (Advertised, b"\xff\xff\xff\xff" + bytes(4)),
        (Delivered, b"\x7f\xff\xff\xff"),
        (MaskedInput, struct.pack(">I", 1) + b"a" + b"\xff\xff\xff\xff" + bytes(16)),
        (Consistency, b"\x80\x00\x00\x00" + bytes(16)),
    ],
)
def test_a_huge_count_is_refused_and_allocates_nothing(kind: type, sent: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage, match="the message ends after"):
            decode(kind, sent)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("wrap", [bytes, memoryview, lambda sent: np.frombuffer(sent, np.uint8)])
def test_a_vector_is_a_read_only_view_of_what_arrived(wrap: typing.Callable[[bytes], Any]) -> None:
    vector = np.arange(1000, dtype=np.uint32) * 4_000_037
    sent = encode(MaskedInput("client", vector, b"", ()))
    arrived = decode(MaskedInput, wrap(sent)).vector
    assert arrived.dtype == np.uint32 and np.array_equal(arrived, vector)
    assert np.shares_memory(arrived, np.frombuffer(sent, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        arrived[0] = 1


@pytest.mark.parametrize("data", ["text", None, 7, ["a"], np.zeros(16, np.uint8)[::2]])
def test_what_is_no_run_of_bytes_is_malformed_too(data: Any) -> None:
    """Whoever answers a slot's call may answer with anything; the server must refuse it, not fall over."""
    with pytest.raises(MalformedMessage, match="is no run of bytes"):
        decode(Survivors, data)


def test_a_vector_that_is_not_contiguous_is_sent_as_it_reads() -> None:
    vector = np.arange(10, dtype=np.uint32)[::-3]
    assert decode(MaskedInput, encode(MaskedInput("a", vector, b"", ()))).vector.tolist() == [9, 6, 3, 0]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Plan("r", -1, 1, b"", b"", b"", 1.0, ()), "-1 does not fit 8 unsigned bytes"),
        (Plan("r", 1, 2**64, b"", b"", b"", 1.0, ()), "does not fit 8 unsigned bytes"),
        (MaskedInput("a", np.zeros(3, np.int32), b"", ()), r"int32 \(3,\) is not a uint32 vector"),
        (MaskedInput("a", np.zeros(3, ">u4"), b"", ()), "is not a uint32 vector"),
        (MaskedInput("a", np.zeros((3, 1), np.uint32), b"", ()), r"uint32 \(3, 1\) is not a uint32 vector"),
        (Consistency("\ud800", b"", ()), "surrogates not allowed"),
        (ClientReport("a", 1, 1.0, None, None, None, {}), "no canonical encoding"),
    ],
)
def test_a_value_that_has_no_encoding_is_refused(message: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encode(message)
