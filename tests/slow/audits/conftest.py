"""The round of nine clients of `tests/unit/audits`."""

from tests.unit.audits.conftest import few, make_round, skellam, sparse

__all__ = ["few", "make_round", "skellam", "sparse"]
