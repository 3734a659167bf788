"""How often one caller may ask."""

from collections import Counter
from time import monotonic

MOST_A_MINUTE = 1_800
"""Requests of one member, or with one token. A round takes some twenty, a model one for each of its files."""


class Overfull(Exception):
    """Too much is asked; the text says what, and it may be tried again."""


class Quota:
    """Requests of this minute, by who made them."""

    def __init__(self) -> None:
        self._minute, self._counts = 0, Counter[str]()

    def count(self, name: str) -> None:
        """Raises `Overfull` for more than `MOST_A_MINUTE`."""
        if (minute := int(monotonic() / 60)) != self._minute:
            self._minute, self._counts = minute, Counter()
        self._counts[name] += 1
        if self._counts[name] > MOST_A_MINUTE:
            raise Overfull(f"one caller may ask {MOST_A_MINUTE} times a minute")
