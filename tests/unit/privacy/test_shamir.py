"""Shamir's sharing: t shares give the secret, whichever they are; t - 1 fit every secret equally well."""

import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.privacy.shamir import PRIME, SHARE_BYTES, reconstruct, split

SECRET = bytes(range(200, 232))


def solved_at_zero(shares: dict[int, bytes]) -> int:
    """The constant term of the polynomial through these shares: sum_j c_j x^j = y, solved by elimination mod p."""
    size = len(shares)
    rows = [[pow(x, j, PRIME) for j in range(size)] + [int.from_bytes(y, "big")] for x, y in shares.items()]
    for column in range(size):
        pivot = next(row for row in range(column, size) if rows[row][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = pow(rows[column][column], PRIME - 2, PRIME)
        rows[column] = [value * inverse % PRIME for value in rows[column]]
        for row in range(size):
            if row != column:
                factor = rows[row][column]
                rows[row] = [(a - factor * b) % PRIME for a, b in zip(rows[row], rows[column], strict=True)]
    return rows[0][-1]


def test_the_modulus_is_prime() -> None:
    """Fermat's test for 30 bases; without it, a share might have no inverse, or tell something about the secret."""
    assert PRIME == 2**256 + 297
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in range(2, 32))


@st.composite
def dealt(draw: st.DrawFn) -> tuple[bytes, int, list[int], list[int]]:
    """A secret, a threshold, the holders' points, and at least threshold of these."""
    points = draw(st.lists(st.integers(1, 300), min_size=1, max_size=12, unique=True))
    threshold = draw(st.integers(1, len(points)))
    size = draw(st.integers(threshold, len(points)))
    edges = st.sampled_from([bytes(32), b"\xff" * 32, bytes(31) + b"\x01"])
    secret = draw(st.binary(min_size=32, max_size=32) | edges)
    return secret, threshold, points, draw(st.permutations(points))[:size]


@settings(max_examples=40, deadline=None)
@given(dealt())
def test_reconstruction_is_the_solution_of_the_linear_equations(case: tuple[bytes, int, list[int], list[int]]) -> None:
    secret, threshold, points, chosen = case
    shares = split(secret, threshold, points)
    assert list(shares) == points and {len(share) for share in shares.values()} == {SHARE_BYTES}
    assert solved_at_zero({point: shares[point] for point in chosen}) == int.from_bytes(secret, "big")
    assert reconstruct({point: shares[point] for point in chosen}) == secret


@settings(max_examples=30, deadline=None)
@given(
    secret=st.binary(min_size=32, max_size=32),
    other=st.binary(min_size=32, max_size=32),
    held=st.integers(1, 5),
    missing=st.integers(1, 5),
)
def test_one_share_of_two_fits_every_other_secret(secret: bytes, other: bytes, held: int, missing: int) -> None:
    """The line through (0, other) and the held share gives a second share that completes it to the other secret."""
    missing += held
    share = split(secret, 2, [held, missing])[held]
    start, value = int.from_bytes(other, "big"), int.from_bytes(share, "big")
    slope = (value - start) * pow(held, -1, PRIME) % PRIME
    completing = ((start + slope * missing) % PRIME).to_bytes(SHARE_BYTES, "big")
    assert reconstruct({held: share, missing: completing}) == other


def test_shares_of_the_same_secret_are_fresh() -> None:
    assert len({split(SECRET, 2, [1, 2])[1] for _ in range(50)}) == 50


def test_a_result_that_is_no_secret_is_refused() -> None:
    """2^256 needs 33 bytes."""
    with pytest.raises(ValueError, match="give no 32-byte secret"):
        reconstruct({1: (2**256).to_bytes(SHARE_BYTES, "big")})
    assert reconstruct({1: (2**256 - 1).to_bytes(SHARE_BYTES, "big")}) == b"\xff" * 32


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_secret_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"a secret has {size} bytes; it must have 32"):
        split(secrets.token_bytes(size), 2, [1, 2, 3])


@pytest.mark.parametrize(
    ("threshold", "points"),
    [
        (3, [1, 2]),
        (3, [1, 2, 2]),  # two holders at one point hold one share
        (0, [1, 2]),
        (-1, [1, 2]),
        (2, [0, 1, 2]),  # the share at 0 is the secret itself
        (2, [-1, 1, 2]),
        (1, []),
    ],
)
def test_points_that_cannot_carry_the_threshold_are_refused(threshold: int, points: list[int]) -> None:
    with pytest.raises(ValueError):
        split(SECRET, threshold, points)
