"""Shamir's secret sharing over p = 2^256 + 297: any t shares give the secret, t - 1 say nothing at all about it.

Guarantee, against holders who pool what they have: fewer than t shares are independent of the secret
(information-theoretic). Not covered: a dealer who deals shares of different secrets; whoever reconstructs must check
the result against something it knows, as the protocol does.

>>> shares = split(b"a secret of thirty-two bytes. ok", threshold=2, points=[1, 2, 3])
>>> reconstruct({1: shares[1], 3: shares[3]})
b'a secret of thirty-two bytes. ok'
"""

import secrets
from collections.abc import Mapping, Sequence

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, points: Sequence[int]) -> dict[int, bytes]:
    """One share (33 bytes) for each point, a positive number. Coefficients come from the system's randomness.

    Raises `ValueError` for a secret of another length than 32 bytes or fewer points than the threshold.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {len(secret)} bytes; it must have {SECRET_BYTES}")
    if not 1 <= threshold <= len(set(points)) or min(points) < 1:
        raise ValueError(f"{len(set(points))} points, the smallest {min(points)}, cannot carry threshold {threshold}")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {point: _evaluate(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in points}


def reconstruct(shares: Mapping[int, bytes]) -> bytes:
    """The secret from at least threshold shares by their points, by Lagrange's formula at 0.

    Fewer or altered shares give some other value, or `ValueError` where that is no 32-byte secret.
    """
    values = {point: int.from_bytes(share, "big") for point, share in shares.items()}
    total = 0
    for point, value in values.items():
        numerator = denominator = 1
        for other in values:
            if other != point:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - point) % PRIME
        total += value * numerator * pow(denominator, -1, PRIME)
    total %= PRIME
    if total >= 2**256:
        raise ValueError("these shares give no 32-byte secret")
    return total.to_bytes(SECRET_BYTES, "big")


def _evaluate(coefficients: list[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value
