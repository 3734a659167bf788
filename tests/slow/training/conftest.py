"""The clients of `tests/unit/training`."""

from tests.unit.training.conftest import all_rounds, make_task

__all__ = ["all_rounds", "make_task"]
