"""The people and exchanges of `tests/unit/privacy`."""

from tests.unit.privacy.conftest import earlier, exchange, make_exchange, make_people, past, same_frames_are_read_once

__all__ = ["earlier", "exchange", "make_exchange", "make_people", "past", "same_frames_are_read_once"]
