"""Seeds: a known value that no change may alter, and no two purposes that share one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.seeding import derive_seed


def test_a_seed_is_the_first_63_bits_of_sha256_over_its_purpose() -> None:
    """`printf 7/fit/3/s1 | sha256sum` begins with 6a650cd6ac83ac3c: a change here would change every old run."""
    assert derive_seed(7, "fit", 3, "s1") == 0x6A650CD6AC83AC3C >> 1


def test_seed_purpose_round_and_client_each_count() -> None:
    seeds = {
        derive_seed(run, purpose, number, client)
        for run in range(3)
        for purpose in ("fit", "cohort")
        for number in range(20)
        for client in ("s1", "s2", "s11")
    }
    assert len(seeds) == 3 * 2 * 20 * 3


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64), st.text(max_size=20), st.integers(0, 10**6))
def test_a_seed_fits_numpy_and_torch(seed: int, purpose: str, number: int) -> None:
    assert 0 <= derive_seed(seed, purpose, number) < 2**63
