"""A seed for each random choice, from the run's seed and from what it is for: order and resume cannot matter.

Not derived, but from the system's randomness: Poisson cohorts, groups (`strategy.groups`), the secure protocol's
secrets and rounding, and a `privacy.mechanism`'s noise.
"""

import hashlib


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed from the run's seed and a purpose such as ("fit", round, client)."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
