"""ONNX networks to test with, written as protocol buffers by hand: no package that makes them is needed."""

from pathlib import Path

import numpy as np


def field(number: int, content: bytes | str | int) -> bytes:
    """One field of a protocol buffer message: a number as varint, anything else with its length before it."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def write_network(
    path: Path, shape: tuple[int | str, ...], weights: np.ndarray, element: int = 1, inputs: int = 1
) -> str:
    """An ONNX file: the mean colour of a picture of this shape times `weights` [3, D]. element: 1 float, 2 uint8."""

    def node(kind: str, *names: str, output: str, more: bytes = b"") -> bytes:
        return field(1, b"".join(field(1, name) for name in names) + field(2, output) + field(4, kind) + more)

    def value(name: str, shape: tuple[int | str, ...], element: int) -> bytes:
        dims = b"".join(field(1, field(1 if isinstance(size, int) else 2, size)) for size in shape)
        return field(1, name) + field(2, field(1, field(1, element) + field(2, dims)))

    size = weights.shape[1]
    channels = shape[1] if isinstance(shape[1], int) else 3
    values = np.resize(weights, (channels, size))
    weight = field(1, channels) + field(1, size) + field(2, 1) + field(8, "weight") + field(9, values.tobytes())
    to_float = field(5, field(1, "to") + field(3, 1) + field(20, 2))
    graph = (
        node("Cast", "picture", output="cast", more=to_float)
        + node("GlobalAveragePool", "cast", output="pooled")
        + node("Flatten", "pooled", output="colour")
        + node("MatMul", "colour", "weight", output="features")
        + field(2, "faces")
        + field(5, weight)
        + b"".join(field(11, value("picture" if not i else f"more{i}", shape, element)) for i in range(inputs))
        + field(12, value("features", (shape[0], size), 1))
    )
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)))
    return str(path)
