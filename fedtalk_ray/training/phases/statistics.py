"""What phases of statistics have in common: how much a client counts, products of numbers, and what is not believed."""

import numpy as np

from fedtalk_ray.errors import ShardError
from fedtalk_ray.shards.format import Piece

ROUNDING = 1e-3
"""How far a mean of statistics may lie beyond what is possible, from rounding to integers."""

FULL, LEAST = 600, 0.1
"""Where the sum counts all clients alike: frames from which on a client counts in full (24 s), and the least share of
that."""

KEPT_BITS = 12
"""Of a fitted map's mantissas: the last ones differ from machine to machine, and all clients need the same."""


def counted(frames: int) -> float:
    """How much a client of so many frames counts, where weights do not say it."""
    return min(1.0, max(LEAST, frames / FULL))


def possible_share(share: float) -> bool:
    """Whether a mean over clients of what `counted` says may be that."""
    return LEAST - ROUNDING <= share <= 1 + ROUNDING


def check_landmarks(piece: Piece, frames: int) -> None:
    """Raises `ShardError` for a piece that has not landmarks of each of so many frames."""
    if len(piece.landmarks) != frames:
        raise ShardError(
            f"clip {piece.clip} of {piece.client} has no landmarks: its shards were prepared by an older version; "
            "prepare them again"
        )


def upper_half(products: np.ndarray) -> np.ndarray:
    """A symmetric matrix [N, N] as the N (N + 1) / 2 numbers of its upper half, row by row."""
    return products[np.triu_indices(len(products))]


def whole(half: np.ndarray, count: int) -> np.ndarray:
    """The inverse of `upper_half`, float64 [N, N]."""
    upper = np.zeros((count, count))
    upper[np.triu_indices(count)] = half
    return upper + np.triu(upper, 1).T


def shortened(values: np.ndarray) -> np.ndarray:
    """float32: the values with so many bits of their mantissas as `KEPT_BITS`.

    >>> shortened(np.array([1 / 3, -3.0])).tolist()
    [0.3333740234375, -3.0]
    """
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2**KEPT_BITS) / 2**KEPT_BITS, exponent).astype(np.float32)
