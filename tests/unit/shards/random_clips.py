"""Small clips of random numbers, and a manifest that fits them."""

import numpy as np

from fedtalk_ray.shards.format import ARRAYS, Manifest

SHAPES = {"frames": [2, 2, 3], "latents": [1, 1, 1], "speech": [2, 3], "waveform": []}
PER_FRAME = 16_000 // 25


def new_manifest(shapes: dict[str, list[int]] = SHAPES) -> Manifest:
    return Manifest("folder", shapes["frames"][0], 25, 16_000, "patch", "0123abcd", shapes)


def clip(length: int, seed: int = 0, shapes: dict[str, list[int]] = SHAPES) -> dict[str, np.ndarray]:
    """Random arrays; the sound counts its own samples, so that a shift is seen."""
    rng = np.random.default_rng(seed)
    arrays = {name: rng.integers(0, 100, (length, *shapes[name])).astype(kind) for name, kind in ARRAYS.items()}
    return arrays | {"waveform": (np.arange(length * PER_FRAME) % 30_000).astype(np.int16)}
