"""Every random choice has its own seed, from the run's and from what it is for: order and resume cannot matter."""

import hashlib


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed from the run's seed and a purpose such as ("fit", round, client)."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
