"""The gate between a run and its sites: what is asked of each, what they replied, who has been heard of.

A plain asyncio class. To the run it looks like one slot that holds all sites (`actors.slot`): `train` and `answer` ask
every named site and return when all have replied, or are late. `coordinator.http` puts it on the network, in this
process or in others (`actors.doors`). What strangers say never comes here.

What it holds is one exchange's: a coordinator that died and came back has lost the exchange and nothing else.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from fedtalk_ray.coordinator.newest_list import NewestList
from fedtalk_ray.coordinator.offer import LONGEST_REFUSAL, RELEASED, run_name
from fedtalk_ray.coordinator.quota import Quota
from fedtalk_ray.coordinator.served import ServedFiles
from fedtalk_ray.enrolment.caller import Called, Callers
from fedtalk_ray.enrolment.coordinator_files import CoordinatorFiles
from fedtalk_ray.messages import Answers, Offer, Order, Part, Plan, Reply
from fedtalk_ray.privacy.protocol import LARGEST_PART, Code, read_frame
from fedtalk_ray.privacy.wire import MalformedMessage, decode, encode

POLL_S = 20.0
"""Seconds that a site waits for its next order at most, before it asks again."""

HEARD_S = 60.0
"""A site that asked for nothing for so long is not on line."""

LATE = "late"

_LOG = logging.getLogger("fedtalk.coordinator")


class Unasked(Exception):
    """A reply to something that is not asked, or not any more."""


class Conflict(Exception):
    """A second, other reply to the same order."""


class GateAway(Exception):
    """The gate is in another process, which is gone."""


SITES_ASK = ("epoch", "hear", "offered", "next_order", "room_for", "take", "released")
"""The methods that doors may call."""


@dataclass
class _Asked:
    """One stage of one exchange."""

    exchange: int
    stage: str
    orders: dict[str, bytes]
    enough: int
    replies: dict[str, Reply] = field(default_factory=dict)
    ready: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, site: str, reply: Reply) -> None:
        """Counts a reply in."""
        self.replies[site] = reply
        self.ready += not reply.refused
        if len(self.replies) == len(self.orders) or self.ready >= self.enough:
            self.done.set()


class Gate:
    """The sites of one run, as seen by its coordinator."""

    ASKED = frozenset({"take_results", "offer", "newest_members", "on_line", "train", "answer", "release"})
    """All that the run asks of it."""

    def __init__(self, files: CoordinatorFiles, served: Path, late_after: float) -> None:
        """served: the folder of what sites fetch. late_after: seconds for training, and for each stage."""
        self.served, self._late_after = ServedFiles(served), late_after
        self._members, self.callers = NewestList(files), Callers()
        self._offer: bytes | None = None
        self._results: tuple[Part, ...] = ()
        self._start: tuple[Part, ...] = ()
        self._released: bytes | None = None
        self._asked: _Asked | None = None
        self._came = asyncio.Condition()
        self._waiting: dict[str, asyncio.Event] = {}
        self._heard: dict[str, float] = {}
        self._quota = Quota()
        self._kept: dict[tuple[int, str, str], bytes] = {}
        self._values = 0

    # Asked by the run

    async def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """As a slot's."""
        if method not in self.ASKED:
            raise ValueError(f"the gate is not asked for {method!r}")
        return await getattr(self, method)(*arguments, **keywords)

    async def offer(self, nonce: bytes, config: str, conditions: str, model: str | None, log: Path) -> str:
        """What the run is about; its name. model: the folder to start from, None for one that ships with the package.
        log: the file that is written to from now on."""
        _write_to(log)
        self._start = () if model is None else self.served.add_model(Path(model))
        offer = Offer(nonce, config, self._start, conditions)
        self._offer = encode(offer)
        return run_name(offer)

    async def take_results(self, results: Mapping[str, np.ndarray]) -> None:
        """What each phase before ended with, float32 [D] by its name, in their order."""
        self._results = tuple(self.served.add(name, _bytes_of(vector)) for name, vector in results.items())

    async def newest_members(self) -> bytes:
        """The newest list that the authority signed."""
        return self._members.signed()

    async def on_line(self, of: list[str], count: int, within: float) -> list[str]:
        """Who of these is a member and was heard of lately, as soon as there are so many, or after so many seconds."""
        wanted, until = set(of), monotonic() + within
        while True:
            found = [site for site in self._present() if site in wanted]
            left = until - monotonic()
            if len(found) >= count or left <= 0:
                return found
            async with self._came:
                try:
                    await asyncio.wait_for(self._came.wait(), min(left, 5.0))
                except TimeoutError:
                    continue

    async def train(self, clients: list[str], shared: np.ndarray, plan: bytes, enough: int | None = None) -> Answers:
        """Lets these sites train for the round of the signed plan; who is ready, and why others are not."""
        _, planned = read_frame(plan, Plan)
        part = self.served.add("shared", _bytes_of(shared))
        self._values = len(shared)
        self.served.keep_only({each.digest for each in (*self._start, *self._results, part)})
        order = encode(Order(planned.exchange, "train", plan, (*self._results, part)))
        replies = await self._ask(planned.exchange, "train", dict.fromkeys(clients, order), enough)
        return self._answers(clients, replies)[0]

    async def answer(self, stage: str, frames: dict[str, bytes]) -> tuple[Answers, list[np.ndarray]]:
        """These sites' signed answers to one stage of the exchange that they trained for."""
        exchange = self._asked.exchange if self._asked is not None else 0
        # Once for all who are told the same: everybody's keys, to a thousand sites, would be held a thousand times.
        order_of = {frame: encode(Order(exchange, stage, frame)) for frame in set(frames.values())}
        orders = {site: order_of[frame] for site, frame in frames.items()}
        replies = await self._ask(exchange, stage, orders, None)
        return self._answers(list(frames), replies)

    async def release(self, folder: str) -> int:
        """Gives a run's released model, its pipeline and adapter, to whoever asks from now on; how many sites there
        are."""
        parts = [
            self.served.add_model(place, f"{name}/") for name in RELEASED if (place := Path(folder) / name).is_dir()
        ]
        self._released = encode(Order(0, "over", b"", tuple(part for each in parts for part in each)))
        self._wake(list(self._waiting))
        return len(self._present())

    # Asked by sites, in whose name a door has looked at the signature

    async def epoch(self) -> bytes:
        """Without which no member can sign a request; the same for as long as this gate lives."""
        return self.callers.epoch

    async def hear(self, called: Called) -> None:
        """Notes that a member called. Raises `OldRequest` for what came before, and `Overfull` for a member that calls
        all the time."""
        self.callers.count(called)
        now, before = monotonic(), self._heard.get(called.site)
        self._quota.count(called.site)
        self._heard[called.site] = now
        if before is None or now - before >= HEARD_S:
            async with self._came:
                self._came.notify_all()

    async def offered(self) -> bytes | None:
        return self._offer

    async def next_order(self, site: str, within: float = POLL_S) -> bytes | None:
        """What the site is asked and has not replied to, as soon as there is something, or None after a while: at once
        where the site asks a second time, since whoever asked the first time is gone."""
        until, woken = monotonic() + within, asyncio.Event()
        if before := self._waiting.get(site):
            before.set()
        self._waiting[site] = woken
        try:
            while True:
                if (found := self._order_for(site)) is not None:
                    return found
                left = until - monotonic()
                if left <= 0 or self._waiting.get(site) is not woken:
                    return None
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), left)
                woken.clear()
        finally:
            if self._waiting.get(site) is woken:
                del self._waiting[site]

    async def released(self) -> bytes | None:
        """The last order, which names the files of the released model; None before there is one."""
        return self._released

    async def room_for(self, site: str, exchange: int, stage: str) -> int:
        """Bytes of the site's reply to that at most; 0 where it is not asked and was not given either."""
        if not self._expects(site, exchange, stage):
            return 0
        members = len(self._members.membership().members)
        values = 4 * self._values if stage == "mask" else 0
        return LARGEST_PART * (members + 3) + values + LONGEST_REFUSAL

    async def take(self, site: str, exchange: int, stage: str, body: bytes) -> None:
        """A site's reply. The same one again changes nothing. Raises `Unasked`, `Conflict` or `MalformedMessage`."""
        digest = sha256(body).digest()
        if kept := self._kept.get((exchange, stage, site)):
            if kept != digest:
                _LOG.warning("%s replied to %s of exchange %d a second time, with other bytes", site, stage, exchange)
                raise Conflict
            return
        asked = self._asked
        if asked is None or not self._expects(site, exchange, stage):
            raise Unasked
        reply = decode(Reply, body)
        if len(reply.refused) > LONGEST_REFUSAL or not reply.refused.isprintable():
            raise MalformedMessage("a refusal is one short line")
        if reply.refused:
            _LOG.warning("%s refuses %s of exchange %d: %s", site, stage, exchange, reply.refused)
        self._kept[exchange, stage, site] = digest
        asked.take(site, reply)

    # Within

    def _order_for(self, site: str) -> bytes | None:
        asked = self._asked
        if asked is not None and site in asked.orders and site not in asked.replies:
            return asked.orders[site]
        return self._released

    def _wake(self, sites: Iterable[str]) -> None:
        for site in sites:
            if waiting := self._waiting.get(site):
                waiting.set()

    def _expects(self, site: str, exchange: int, stage: str) -> bool:
        asked = self._asked
        now = asked is not None and (asked.exchange, asked.stage) == (exchange, stage) and site in asked.orders
        return now or (exchange, stage, site) in self._kept

    def _present(self) -> list[str]:
        now, members = monotonic(), self._members.membership()
        return sorted(
            site for site, heard in self._heard.items() if now - heard < HEARD_S and members.member(site) is not None
        )

    async def _ask(self, exchange: int, stage: str, orders: dict[str, bytes], enough: int | None) -> dict[str, Reply]:
        """Puts orders before the sites, and returns what they replied in time."""
        asked = _Asked(exchange, stage, orders, len(orders) + 1 if enough is None else enough)
        # By its hash a repeated reply of this exchange is known.
        self._kept = {key: digest for key, digest in self._kept.items() if key[0] == exchange}
        self._asked = asked
        self._wake(orders)
        if orders:
            try:
                await asyncio.wait_for(asked.done.wait(), self._late_after)
            except TimeoutError:
                _LOG.warning("%d of %d sites are late in %s", len(orders) - len(asked.replies), len(orders), stage)
        replies, asked.orders, asked.replies = asked.replies, {}, {}
        return replies

    def _answers(self, clients: list[str], replies: Mapping[str, Reply]) -> tuple[Answers, list[np.ndarray]]:
        done, refused, payload = [], Counter[str](), []
        for site in sorted(clients):
            if site not in replies:
                refused[LATE] += 1
                continue
            reply = replies[site]
            if reply.refused:
                known = reply.refused.split(":")[0]
                refused[known if known in set(Code) else str(Code.NOT_AGREED)] += 1
                continue
            done.append(site)
            payload.append(np.frombuffer(reply.frame, np.uint8))
        return Answers(tuple(done), dict(refused)), payload


def _write_to(path: Path) -> None:
    """Lets the log be a file that only grows, with the time before each line."""
    for old in list(_LOG.handlers):
        _LOG.removeHandler(old)
        old.close()
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _LOG.addHandler(handler)


def _bytes_of(vector: np.ndarray) -> bytes:
    return np.ascontiguousarray(vector, np.float32).tobytes()
