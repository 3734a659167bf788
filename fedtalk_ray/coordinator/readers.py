"""Who has a token: what they may fetch, and how often, without a question to the gate for each."""

from collections.abc import Awaitable, Callable
from time import monotonic

from fedtalk_ray.coordinator.quota import Quota
from fedtalk_ray.messages import Order
from fedtalk_ray.privacy.wire import decode

ASKED_AGAIN_S = 1.0
"""Seconds for which an answer of the gate's is kept."""


class Readers:
    """Those of one door."""

    def __init__(self, released: Callable[[], Awaitable[bytes | None]]) -> None:
        """released: the gate's last order, which names the files; None before there is one."""
        self._ask, self._asked_at = released, -ASKED_AGAIN_S
        self._order: bytes | None = None
        self._files: frozenset[str] = frozenset()
        self.quota = Quota()

    async def order(self) -> bytes | None:
        """What the gate says, or said a moment ago."""
        if monotonic() - self._asked_at >= ASKED_AGAIN_S:
            found = await self._ask()
            if found != self._order:
                self._order = found
                self._files = (
                    frozenset() if found is None else frozenset(p.digest.hex() for p in decode(Order, found).parts)
                )
            self._asked_at = monotonic()
        return self._order

    async def may_fetch(self, digest: str) -> bool:
        """Whether that is a file of the released model. digest: SHA-256, hex."""
        await self.order()
        return digest in self._files
