"""The people and exchanges of `tests/unit/privacy`."""

from tests.unit.privacy.conftest import make_exchange, same_frames_are_read_once

__all__ = ["make_exchange", "same_frames_are_read_once"]
