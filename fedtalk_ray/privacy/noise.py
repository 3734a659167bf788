"""Noise for client-level differential privacy: distributed Skellam, or central Gaussian for a trusted server.

Guarantee of Skellam noise, against everybody who sees the sum: every client adds so much that any set of survivors
that may be opened carries noise of variance (z * S * scale)^2, even when `colluders` of them add none (Agarwal et al.
2021). Nobody, the server included, sees the sum without it. Central Gaussian noise protects only against those who see
the model: the server sees the exact sum and must be trusted. Noise is never derived from a run's seed.

>>> variance = client_variance(noise_multiplier=1.0, sensitivity=100.0, survivors=10, colluders=2)
>>> variance
1250.0
>>> bool(abs(skellam(100_000, variance, system_rng()).var() / variance - 1) < 0.05)
True
"""

import os

import numpy as np

LARGEST_RATE = 2.0**36
"""numpy's Poisson is off by some percent at far larger rates."""


def system_rng() -> np.random.Generator:
    """A fresh generator with 256 bits from the system's randomness."""
    # Philox keeps 128 bits of a seed, and a SeedSequence of the usual size hands on as many.
    seed = np.random.SeedSequence(int.from_bytes(os.urandom(32), "big"), pool_size=8)
    return np.random.Generator(np.random.PCG64DXSM(seed))


def client_variance(*, noise_multiplier: float, sensitivity: float, survivors: int, colluders: int = 0) -> float:
    """What each client adds, in steps squared: (z * S)^2 / (m_min - colluders), with S in steps."""
    if colluders >= survivors:
        raise ValueError(f"{colluders} colluders among {survivors} survivors leave nobody to add noise")
    return (noise_multiplier * sensitivity) ** 2 / (survivors - colluders)


def skellam(dimension: int, variance: float, rng: np.random.Generator) -> np.ndarray:
    """int64 [dimension]: differences of two Poisson variables of rate variance / 2."""
    rate = variance / 2
    if rate > LARGEST_RATE:
        raise ValueError(f"a Poisson rate of {rate:g} is above {LARGEST_RATE:g}; lower privacy.scale_bits")
    return rng.poisson(rate, dimension) - rng.poisson(rate, dimension)


def gaussian(dimension: int, deviation: float) -> np.ndarray:
    """float64 [dimension]: half the sum of four normal variables, against attacks on floating-point samplers.

    As Opacus' secure mode does it (Holohan and Braghin 2021, section 5.1), whose own torch generator on a CPU keeps 32
    bits of its seed, few enough to try them all.
    """
    return deviation / 2 * system_rng().standard_normal((4, dimension)).sum(0)
