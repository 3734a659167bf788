"""Canonical bytes: one encoding for each message, and whatever else arrives is refused without cost."""

import dataclasses
import os
import struct
import typing
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedtalk_ray.messages import (
    TO_SERVER,
    Advertised,
    ClientReport,
    Consistency,
    Delivered,
    MaskedInput,
    Plan,
    Survivors,
    UnmaskRequest,
)
from fedtalk_ray.privacy.protocol import Frame
from fedtalk_ray.privacy.wire import MalformedMessage, decode, encode

KINDS = [*TO_SERVER.values(), Plan, Advertised, Delivered, Survivors, UnmaskRequest, Frame]


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


every_kind = st.sampled_from(KINDS)
many = settings(max_examples=int(os.environ.get("FEDTALK_CASES", "100")), deadline=None)


@many
@given(kind=every_kind, data=st.data())
def test_what_was_sent_arrives_and_nothing_shorter_or_longer(kind: type, data: st.DataObject) -> None:
    message = data.draw(values_of(kind))
    sent = encode(message)
    assert plain(decode(kind, sent)) == plain(message)
    for wrong in [*(sent[:length] for length in range(len(sent))), *(sent + bytes([byte]) for byte in (0, 1, 255))]:
        with pytest.raises(MalformedMessage) as refused:
            decode(kind, wrong)
        assert ("follow the message" if len(wrong) > len(sent) else "ends after") in str(refused.value)


@many
@given(kind=every_kind, data=st.data())
def test_altered_bytes_are_refused_or_are_another_messages_own(kind: type, data: st.DataObject) -> None:
    """No bytes decode to a message that is not encoded as these very bytes: a signature covers one meaning only."""
    sent = bytearray(data.draw(values_of(kind).map(encode) | st.binary(max_size=60)))
    if sent:
        changes = st.dictionaries(st.integers(0, len(sent) - 1), st.integers(0, 255) | st.sampled_from([0, 1, 0x7F]))
        for place, byte in data.draw(changes).items():
            sent[place] = byte
    try:
        message = decode(kind, bytes(sent))
    except MalformedMessage:
        return
    assert encode(message) == bytes(sent)


def test_the_bytes_of_a_message_by_hand() -> None:
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


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (Survivors, b"\xff\xff\xff\xff" + struct.pack(">I", 1) + b"a"),
        (Survivors, struct.pack(">I", 1) + b"\xff\xff\xff\xff" + b"a"),
        (Advertised, b"\xff\xff\xff\xff" + bytes(4)),
        (MaskedInput, struct.pack(">I", 1) + b"a" + b"\xff\xff\xff\xff" + bytes(16)),
    ],
)
def test_a_huge_count_is_refused(kind: type, sent: bytes) -> None:
    with pytest.raises(MalformedMessage, match="the message ends after"):
        decode(kind, sent)


@pytest.mark.parametrize("wrap", [bytes, memoryview, lambda sent: np.frombuffer(sent, np.uint8)])
def test_a_vector_is_a_read_only_view_of_what_arrived(wrap: typing.Callable[[bytes], Any]) -> None:
    vector = np.arange(1000, dtype=np.uint32) * 4_000_037
    sent = encode(MaskedInput("client", vector, b"", ()))
    arrived = decode(MaskedInput, wrap(sent)).vector
    assert arrived.dtype == np.uint32 and np.array_equal(arrived, vector)
    assert np.shares_memory(arrived, np.frombuffer(sent, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        arrived[0] = 1


def test_what_is_no_run_of_bytes_and_text_that_is_not_utf8_are_malformed_too() -> None:
    for data in ("text", None, np.zeros(16, np.uint8)[::2]):
        with pytest.raises(MalformedMessage, match="is no run of bytes"):
            decode(Survivors, data)
    for text in (b"\xff", b"\xc0\x80"):
        with pytest.raises(MalformedMessage, match="not UTF-8"):
            decode(Consistency, struct.pack(">I", len(text)) + text + bytes(4))


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
