"""Canonical bytes: every message has exactly one encoding, and nothing received is ever unpickled.

Guarantee, against anybody who can send bytes: `decode` either returns a message of the asked type whose `encode` is
these very bytes, or raises `MalformedMessage`. It runs no code of the sender's and allocates no more than was received.

Encoding by field type: str and bytes as a 4-byte length and the content, int as 8 bytes (unsigned), float as 8 bytes
(IEEE 754), a uint32 array as its length in values and little-endian values, a tuple as its count and its items, a
dataclass as its fields in order. Lengths and numbers are big-endian.

>>> from fedtalk_ray.messages import Consistency
>>> sent = encode(Consistency("s1", b"hash", (2,)))
>>> decode(Consistency, sent)
Consistency(client='s1', survivors=b'hash', complaints=(2,))
>>> decode(Consistency, sent[:-1])
Traceback (most recent call last):
...
fedtalk_ray.privacy.wire.MalformedMessage: the message ends after 25 of at least 26 bytes
"""

import struct
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

Message = TypeVar("Message")

Buffer = Any
"""bytes, a memoryview, or an array of uint8."""


class MalformedMessage(ValueError):
    """Bytes that are not the encoding of the message they should be."""


def encode(message: Any) -> bytes:
    """The canonical bytes of a dataclass of `fedtalk_ray.messages`. `ValueError` for a value that has none."""
    parts: list[bytes] = []
    _write(type(message), message, parts)
    return b"".join(parts)


def decode(kind: type[Message], data: Buffer) -> Message:
    """The inverse of `encode`. Arrays are read-only views of `data`, so that megabytes are not copied."""
    try:
        view = memoryview(data)
    except TypeError as error:
        raise MalformedMessage(f"a {type(data).__name__} is no run of bytes") from error
    if view.format != "B" or not view.c_contiguous:
        raise MalformedMessage(f"a {type(data).__name__} of this kind is no run of bytes")
    reader = _Reader(view.cast("B"))
    message = _read(kind, reader)
    if reader.position != len(reader.data):
        raise MalformedMessage(f"{len(reader.data) - reader.position} bytes follow the message")
    return message


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data, self.position = data, 0

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise MalformedMessage(f"the message ends after {len(self.data)} of at least {end} bytes")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def length(self) -> int:
        return int(struct.unpack(">I", self.take(4))[0])


@cache
def _field_types(kind: type) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(kind)
    return tuple((field.name, hints[field.name]) for field in fields(kind))


def _write(kind: Any, value: Any, parts: list[bytes]) -> None:
    if kind is int:
        if not 0 <= value < 2**64:
            raise ValueError(f"{value} does not fit 8 unsigned bytes")
        parts.append(struct.pack(">Q", value))
    elif kind is float:
        parts.append(struct.pack(">d", value))
    elif kind in (str, bytes):
        content = value.encode("utf-8") if kind is str else bytes(value)
        parts += [struct.pack(">I", len(content)), content]
    elif kind is np.ndarray:
        if value.dtype != np.uint32 or value.ndim != 1:
            raise ValueError(f"an array of {value.dtype} {value.shape} is not a uint32 vector")
        parts += [struct.pack(">I", len(value)), value.astype("<u4", copy=False).tobytes()]
    elif get_origin(kind) is tuple:
        parts.append(struct.pack(">I", len(value)))
        for item in value:
            _write(get_args(kind)[0], item, parts)
    elif is_dataclass(kind):
        for name, inner in _field_types(kind):  # type: ignore[arg-type]
            _write(inner, getattr(value, name), parts)
    else:
        raise ValueError(f"{kind} has no canonical encoding")


def _read(kind: Any, reader: _Reader) -> Any:
    if kind is int:
        return struct.unpack(">Q", reader.take(8))[0]
    if kind is float:
        return struct.unpack(">d", reader.take(8))[0]
    if kind is bytes:
        return bytes(reader.take(reader.length()))
    if kind is str:
        try:
            return str(reader.take(reader.length()), "utf-8")
        except UnicodeDecodeError as error:
            raise MalformedMessage("a text is not UTF-8") from error
    if kind is np.ndarray:
        return np.frombuffer(reader.take(4 * reader.length()), "<u4")
    if get_origin(kind) is tuple:
        # A huge count costs nothing: items are read one by one, and none is shorter than a byte.
        return tuple(_read(get_args(kind)[0], reader) for _ in range(reader.length()))
    return kind(*(_read(inner, reader) for _, inner in _field_types(kind)))
