"""An invisible mark in a video's pictures: a number of sixteen bits, in waves of brightness that one does not see.

Each of 63 bits of an error-correcting code is the sign of a sum of waves (cosines over the whole picture, so that the
mark stretches with it). The picture's own part of each sum is known when the mark is put in and is made up for
(informed embedding, as in Malvar and Florencio, "Improved Spread Spectrum", IEEE Trans. Signal Processing 51(4), 2003);
of all numbers the one is taken that the first picture comes nearest to by itself. So one frame alone would do, and the
mean over many outlives coding at low rates. Where a picture is smooth the waves are small: there they would be seen,
and there codecs drop them. Nothing here is secret: whoever reads this file can put the mark into any picture, and take
it out.
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter

BITS, NUMBER_BITS = 63, 16
"""Of the code and of the number: BCH(63, 16), which mends eleven wrong bits."""

GENERATOR = 0o6331141367235453
"""Of the code, as a polynomial over GF(2): Lin and Costello, Error Control Coding, appendix C."""

LONGEST, SHORTEST = 28.0, 48.0
"""Half waves over the picture, along its diagonal in the plane of frequencies, of the longest and the shortest waves:
long enough for H.264's blocks to keep them, short enough that a face has little there."""

STRENGTH = 0.16
"""Brightness, of 255, that each bit's sum has at least in a marked picture (root mean square over the picture)."""

SMOOTH, TEXTURED = 0.3, 4.0
"""The share of the waves' height in smooth places, and the mean deviation of brightness from which on it is all of
them."""

SIDE = 288
"""Pixels: sums are taken of a picture made smaller by a whole number, as long as both sides keep so many."""

PASSES = 4
"""A bit's waves, lowered where it is smooth, add a little to other bits; so often that is made up for."""

WRONG_BITS = 7
"""Of 63, at most, where a mark is said to be found. Random signs come so near to one of the 65,536 words of the code
with probability 65,536 (C(63, 0) + ... + C(63, 7)) / 2^63, which is 5 in a million."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Found(NamedTuple):
    """A mark that was read. right: of the 63 bits, the share that fit, weighted by how clearly each was read."""

    number: int
    right: float


def nearest_number(picture: np.ndarray) -> int:
    """The number whose mark changes this picture, uint8 [H, W, 3], least."""
    missing = np.maximum(0, STRENGTH - _codewords() * sums(picture))
    return int((missing**2).sum(1).argmin())


def marked(blocks: Iterable[np.ndarray], number: int) -> Iterator[np.ndarray]:
    """The same frames with the mark: blocks uint8 [n, H, W, 3]."""
    for block in blocks:
        yield np.stack([mark(picture, number) for picture in block]) if len(block) else block


def mark(picture: np.ndarray, number: int) -> np.ndarray:
    """A picture uint8 [H, W, 3] with this number in it."""
    small, signs = _brightness(picture), _codewords()[number]
    heights = np.clip(_texture(small) / TEXTURED, SMOOTH, 1)
    rows, columns = _waves(small.shape[0]), _waves(small.shape[1])
    cells, weights = _cells()
    amplitudes = np.zeros((len(rows), len(columns)), np.float32)
    found = _sums(small)
    for left in reversed(range(PASSES)):
        missing = signs * np.maximum(0, STRENGTH - signs * found) / heights.mean()
        amplitudes[cells[..., 0], cells[..., 1]] += missing[:, None] * weights
        if left:
            found = _sums(small + heights * (rows.T @ amplitudes @ columns))
    height, width = picture.shape[:2]
    change = _waves(height).T @ amplitudes @ _waves(width)
    if small.shape != (height, width):
        heights = np.asarray(Image.fromarray(heights).resize((width, height), Image.Resampling.BILINEAR))
    return np.clip(np.rint(picture + (heights * change)[..., None]), 0, 255).astype(np.uint8)


def sums(picture: np.ndarray) -> np.ndarray:
    """The 63 sums of waves of a picture uint8 [H, W, 3], float32, in units of brightness."""
    return _sums(_brightness(picture))


def _sums(brightness: np.ndarray) -> np.ndarray:
    rows, columns = _waves(brightness.shape[0]), _waves(brightness.shape[1])
    amplitudes = rows @ brightness @ columns.T / np.float32(brightness.size)
    cells, weights = _cells()
    return (amplitudes[cells[..., 0], cells[..., 1]] * weights).sum(1)


def _brightness(picture: np.ndarray) -> np.ndarray:
    """float32 [h, w], made smaller where the picture is large."""
    height, width = picture.shape[:2]
    fold = max(1, min(height, width) // SIDE)
    if fold > 1:
        size = (round(width / fold), round(height / fold))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    return picture.astype(np.float32) @ _LUMA


def _texture(brightness: np.ndarray) -> np.ndarray:
    """Mean deviation from what is around, over about the length of a wave."""
    return uniform_filter(np.abs(brightness - uniform_filter(brightness, 9)), 17)


def read(pictures: Iterable[np.ndarray]) -> Found | None:
    """The mark that these pictures, uint8 [H, W, 3], carry together, or None."""
    total, count = np.zeros(BITS, np.float32), 0
    for picture in pictures:
        total += sums(picture)
        count += 1
    if not count:
        return None
    # Half of the strength is a clear bit: black and white cut off half of each wave.
    clear = np.clip(2 * total / (count * STRENGTH), -1, 1)
    fits = _codewords() @ clear
    number = int(fits.argmax())
    right = (1 + float(fits[number]) / BITS) / 2
    return Found(number, right) if right >= 1 - WRONG_BITS / BITS else None


@lru_cache(maxsize=1)
def _codewords() -> np.ndarray:
    """All of the code, float32 [65536, 63]: few enough that the nearest is found by looking at each."""
    generators = np.array([[GENERATOR << shift >> bit & 1 for bit in range(BITS)] for shift in range(NUMBER_BITS)])
    numbers = np.arange(1 << NUMBER_BITS)[:, None] >> np.arange(NUMBER_BITS) & 1
    return (1 - 2 * (numbers @ generators % 2)).astype(np.float32)


@lru_cache(maxsize=8)
def _waves(length: int) -> np.ndarray:
    """Cosines of 0, 1, 2, ... half waves over so many pixels, float32 [waves, length], of mean square 1."""
    places = (np.arange(length) + 0.5) / length
    waves = np.sqrt(2) * np.cos(np.pi * np.outer(np.arange(int(SHORTEST) + 1), places))
    waves[0] = 1
    return waves.astype(np.float32)


@lru_cache(maxsize=1)
def _cells() -> tuple[np.ndarray, np.ndarray]:
    """Which waves are each bit's, int [63, n, 2] (down and across), and their weights [63, n] of norm 1.

    The order is that of SHA-256, which no library's next version changes.
    """
    side = int(SHORTEST) + 1
    ring = [(i, j) for i in range(1, side) for j in range(1, side) if LONGEST <= np.hypot(i, j) < SHORTEST]
    drawn = {cell: hashlib.sha256(f"fedtalk mark 1: {cell[0]},{cell[1]}".encode()).digest() for cell in ring}
    ring.sort(key=drawn.__getitem__)
    each = len(ring) // BITS
    cells = np.array(ring[: BITS * each]).reshape(BITS, each, 2)
    signs = np.array([1 - 2 * (drawn[cell][-1] & 1) for cell in ring[: BITS * each]]).reshape(BITS, each)
    return cells, (signs / np.sqrt(each)).astype(np.float32)
