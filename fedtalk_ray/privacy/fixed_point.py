"""Real vectors as integers modulo 2^32 and back, so that sums are exact and masks can hide them.

Guarantee: rounding is unbiased (stochastic), and never makes a vector longer than `rounded_norm` says, so that a clip
norm before rounding is a sensitivity after it (conditional rounding, Kairouz, Liu and Steinke 2021, section 4.1). A
value that is not finite is refused before the cast, which would make some number of it.

>>> import numpy as np
>>> integers = to_integers(np.array([0.5, -0.25]), scale=4, rng=np.random.default_rng(0))
>>> integers
array([ 2, -1])
>>> to_ring(integers)
array([         2, 4294967295], dtype=uint32)
>>> from_ring(to_ring(integers), scale=4)
array([ 0.5 , -0.25])
"""

import math

import numpy as np

from fedtalk_ray.privacy.protocol import Aborted, Code

SCALE_BITS = 18
"""Steps to one unit: 2^18. Rounding then adds less than 0.05% to the norm of a million values."""

_SLACK = math.sqrt(2 * 0.5)
"""sqrt(2 log(1 / beta)) for beta = e^-1/2: how far above its mean a rounded norm may lie; else it is rounded again."""


def rounded_norm(norm: float, dimension: int, scale: float) -> float:
    """The bound, in steps, on the norm of a rounded vector whose norm is at most `norm` in units."""
    longest = norm * scale
    mean = longest**2 + dimension / 4 + _SLACK * (longest + math.sqrt(dimension) / 2)
    return min(math.sqrt(mean), longest + math.sqrt(dimension))


def to_integers(vector: np.ndarray, scale: float, rng: np.random.Generator, norm: float | None = None) -> np.ndarray:
    """int64 [D]: every value times `scale`, rounded up or down at random so that its mean is kept.

    norm: the vector's largest norm; rounding is then repeated until `rounded_norm` holds (more than half of all tries
    do). Raises `Aborted` for values that are not finite.
    """
    if not np.isfinite(vector).all():
        raise Aborted(Code.NOT_FINITE)
    exact = vector.astype(np.float64) * scale
    if np.abs(exact).max(initial=0.0) >= 2**62:
        raise Aborted(Code.NOT_FINITE, "a value is beyond every range")
    low = np.floor(exact)
    while True:
        rounded = low + (rng.random(len(exact)) < exact - low)
        if norm is None or float(np.linalg.norm(rounded)) <= rounded_norm(norm, len(exact), scale):
            return rounded.astype(np.int64)


def to_ring(integers: np.ndarray) -> np.ndarray:
    """uint32 [D]: the integers modulo 2^32."""
    return integers.astype(np.uint32)


def from_ring(total: np.ndarray, scale: float) -> np.ndarray:
    """float64 [D] in units, from a sum in the ring that lies in [-2^31, 2^31)."""
    return total.astype(np.uint32).view(np.int32).astype(np.float64) / scale


def check_range(largest_sum: float, scale: float) -> bool:
    """Whether sums up to `largest_sum` units cannot wrap: scale * sum < 2^31."""
    return largest_sum * scale < 2**31
