"""A server that does anything over several exchanges, against the slots of a run: what do these together tell?

`League` begins exchanges with the real slots of clients (`SecureClients` behind `SlotProcess`), their records on disk:
one after another or side by side, under any number, with any part of the cohort, after a restart too. At the end all
that was sent is one system of equations, of vectors and of the masks that nobody can make, and is solved for sums
without masks.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import gcd
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fedtalk_ray.actors.slot import SlotProcess
from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.roster import RosterFile, extend_roster
from fedtalk_ray.federation.secure_aggregator import clip_norm_of
from fedtalk_ray.messages import Plan
from fedtalk_ray.privacy import protocol
from fedtalk_ray.privacy.client_record import ClientRecord
from fedtalk_ray.privacy.protocol import Aborted, Code, Limits
from fedtalk_ray.recipe import PhaseName
from fedtalk_ray.runs.checkpoints import config_digest
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.training.secure_clients import SecureClients
from tests.unit.privacy.conftest import People
from tests.unit.privacy.conspiracy import LENGTH, Conspiracy, Known
from tests.unit.privacy.stories import Deviation, truth

MODEL = np.zeros(LENGTH, np.float32)
CONFIG = {"shards": "s", "pretrained": "p", "cohort": {"size": 8}, "rounds": 3, "phases": ["units", "faces"]}
"""Round 1 is of statistics, which are the same at every call; 2 to 4 are of training."""


@dataclass(frozen=True)
class Rules:
    """What the slots of honest clients run."""

    clients: Any = SecureClients
    process: Any = SlotProcess


@dataclass(frozen=True)
class Act:
    """One exchange that the server begins, with one slot. round, number: as its plan says. left_out: who of the people
    is not in its cohort, by place. anew: the slot was restarted before. peeks: whether the slot is asked for updates as
    they are."""

    round: int
    number: int
    story: Deviation = truth
    left_out: frozenset[int] = frozenset()
    slot: int = 0
    phase: PhaseName = "faces"
    anew: bool = False
    peeks: bool = False


class Held:
    """What a slot holds, as far as it is asked here (`actors.client.ClientSlot` with a vector for a model's update)."""

    ASKED = frozenset({"train", "answer"})

    def __init__(self, config: TrainConfig, clients: Any, phase: PhaseName, vector: Callable[..., np.ndarray]) -> None:
        self.secure = clients(config, phase, LENGTH, bytes(32))
        self.secure._codec = SimpleNamespace(noise=None, dimension=LENGTH, encode=lambda update, *_: update.copy())
        self._phase, self._vector, self.working_on = phase, vector, ""

    def train(self, clients: Sequence[str], plan: bytes) -> None:
        number = self.secure.open_round(plan).round
        for name in clients:
            with contextlib.suppress(Aborted):
                self.secure.join(name, MODEL)
                self.secure.offer(name, self._fit_one(number, name), 1.0)

    def answer(self, stage: str, frames: Mapping[str, Any]) -> Any:
        return self.secure.answer(stage, frames)

    def _fit_one(self, number: int, name: str) -> np.ndarray:
        return self._vector("units" if self._phase == "units" else number, name)


class Asked:
    """One client in one exchange, as whoever calls its slot can have it."""

    def __init__(self, name: str, process: SlotProcess, side: Any, log: Callable[[str, str], None]) -> None:
        self._name, self._process, self._side, self._log = name, process, side, log
        self.left = False

    @property
    def _cohort(self) -> set[str]:
        return self._side._cohort

    @property
    def _seed(self) -> bytes:
        return self._side._seed

    def advertise(self) -> bytes:
        return self._ask("advertise", b"")

    def share(self, frame: bytes) -> bytes:
        return self._ask("share", frame)

    def mask(self, frame: bytes, vector: np.ndarray) -> bytes:
        return self._ask("mask", frame)

    def confirm(self, frame: bytes) -> bytes:
        return self._ask("confirm", frame)

    def unmask(self, frame: bytes) -> bytes:
        return self._ask("unmask", frame)

    def sign(self, message: Any) -> bytes | None:
        """The method of a client that signs, asked for as if it were a stage."""
        with contextlib.suppress(Aborted, ValueError):
            return self._ask("_send", message)
        return None

    def _ask(self, stage: str, frame: Any) -> bytes:
        if self._side is None or self.left:
            raise Aborted(Code.NOT_IN_ROUND)
        _, payload = self._process.call("answer", stage, {self._name: frame})
        if not payload:
            raise Aborted(Code.WRONG_STAGE)
        self._log(self._name, stage)
        return bytes(payload[0])


@dataclass
class League:
    """A run of `people`, of whom `colluders` are the server's. folder: where it lies."""

    people: People
    colluders: frozenset[str]
    folder: Path
    rules: Rules = Rules()
    began: list[Conspiracy] = field(default_factory=list)
    plain: set[tuple[Any, str]] = field(default_factory=set)
    """Vectors that a slot returned as they are."""

    def __post_init__(self) -> None:
        self.config = parse_config(CONFIG | {"run": str(self.folder)}, "test")
        run = RunFolder(self.folder)
        run.clients_folder.mkdir(parents=True)
        extend_roster(run.roster, self.people.server.public, self.people.roster.clients)
        for name in self.people.names:
            ClientRecord(run.client(name).protocol_state).create()
            run.client(name).signing_key.write_bytes(self.people.keys[name].secret)
        self._run = RosterFile(run.roster).read()[1]
        self._slots: dict[tuple[int, str], SlotProcess] = {}
        self._open: dict[SlotProcess, list[Asked]] = {}
        self._vectors: dict[tuple[Any, str], np.ndarray] = {}
        self._rng = np.random.default_rng(1)
        self._known = Known()
        self._whose: list[Any] = []
        self.answered: Counter[tuple[int, str, str]] = Counter()
        """(exchange, client, stage) -> how often it was answered."""

    def play(self, acts: Sequence[Act], order: Sequence[int] = ()) -> League:
        """order: whose next stage comes next; then each goes on to its end, the first one first."""
        under_way: list[Iterator[str] | None] = [self._stages(act) for act in acts]
        for place in (*order, *sorted([*range(len(acts))] * 6)):
            stages = under_way[place % len(acts)]
            if stages is not None and next(stages, None) is None:
                under_way[place % len(acts)] = None
        return self

    def vector(self, what: Any, name: str) -> np.ndarray:
        """A client's vector of a round, or of the statistics; the same whenever it is asked for."""
        if (what, name) not in self._vectors:
            self._vectors[what, name] = self._rng.integers(0, 2**32, LENGTH, dtype=np.uint32)
        return self._vectors[what, name]

    def _slot(self, act: Act) -> SlotProcess:
        key = (act.slot, act.phase)
        if act.anew or key not in self._slots:
            made = lambda config: Held(config, self.rules.clients, act.phase, self.vector)  # noqa: E731
            self._slots[key] = self.rules.process(made, self.config, "slot")
        return self._slots[key]

    def _stages(self, act: Act) -> Generator[str]:
        cohort = tuple(name for place, name in enumerate(self.people.names) if place not in act.left_out)
        shared, agreed = hashlib.sha256(MODEL.tobytes()).digest(), config_digest(self.config)
        clip_norm = clip_norm_of(self.config, act.round, LENGTH)
        plan = Plan(self._run, act.number, act.round, bytes(32), shared, agreed, clip_norm, cohort)
        slot = self._slot(act)
        frame = protocol.seal_frame(self.people.server, protocol.run_context(self._run), plan)
        # What else the slot was about is over.
        for other in self._open.pop(slot, []):
            other.left = True
        with contextlib.suppress(Aborted):
            slot.call("train", [name for name in cohort if name not in self.colluders], frame)
        what: Any = "units" if act.phase == "units" else act.round

        def client(name: str, *_: Any) -> Asked:
            side = slot._held.secure._sides.get(name)
            asked = Asked(name, slot, side, lambda who, stage: self._count(act.number, who, stage))
            self._open.setdefault(slot, []).append(asked)
            return asked

        league = Conspiracy(
            self.people,
            plan,
            Limits(),
            self.colluders,
            client,
            vectors={name: self.vector(what, name) for name in cohort},
            before=tuple(self.began),
            known=self._known,
        )
        self.began.append(league)
        self._whose.append(what)
        if act.peeks:
            self._peek(slot, plan)
        yield "train"
        yield from league.steps(act.story(league))

    def _peek(self, slot: SlotProcess, plan: Plan) -> None:
        """Asks for what trains a client, by its name."""
        for name in set(plan.cohort) - self.colluders:
            with contextlib.suppress(RunError):
                slot.call("_fit_one", plan.round, name)
                self.plain.add((plan.round, name))

    def _count(self, number: int, name: str, stage: str) -> None:
        if stage in protocol.STAGES:
            self.answered[number, name, stage] += 1

    # What they can make of it.

    def answered_twice(self) -> list[tuple[int, str, str]]:
        return [what for what, times in self.answered.items() if times > 1]

    def too_small(self) -> list[frozenset[str]]:
        """Sums over fewer clients than the policy allows in any of the exchanges, those in league counted."""
        least = min(
            each.limits.opened(len(each.plan.cohort)) - len(self.colluders & set(each.plan.cohort))
            for each in self.began
        )
        return [group for group in self.opened() if len(group) < least]

    def opened(self) -> list[frozenset[str]]:
        """Whose vectors the shortest sums and differences are made of that lie open."""
        return sorted({frozenset(name for _, name in found) for found in self.open_vectors()}, key=sorted)

    def open_vectors(self) -> list[frozenset[tuple[Any, str]]]:
        """The same, with what each vector is of."""
        for each in 2 * self.began:
            # What came out in a later exchange may tell more of an earlier one.
            each.left(each.masked)
        rows: list[Row] = [{("vector", key): 1, ("sent", ("plain", key)): 1} for key in sorted(self.plain, key=str)]
        sent: dict[Any, np.ndarray] = {("plain", key): self._vectors[key] for key in self.plain}
        for place, each in enumerate(self.began):
            for name, (rest, own, tied) in each.left(each.masked).items():
                row = {("vector", (self._whose[place], name)): 1, ("sent", (place, name)): 1}
                if not own:
                    row["mask", each.own_masks[name]] = 1
                keys = each.keys[name]
                for partner in tied:
                    pair = frozenset({keys[name][1], keys[partner][1]})
                    row["mask", (each.session[name], pair)] = 1 if name < partner else -1
                rows.append(row)
                sent[place, name] = rest
        found = set()
        for row in shortest(rows):
            told = sum(times * sent[what].astype(object) for (kind, what), times in row.items() if kind == "sent")
            plain = sum(times * self._vectors[what].astype(object) for what, times in vectors_of(row).items())
            assert ((told - plain) % 2**32 == 0).all(), "masks were left on an opened sum"
            found.add(frozenset(vectors_of(row)))
        return [*found]


Row = dict[tuple[str, Any], int]
"""An equation: ("sent", x) stands for what was sent, and equals these vectors and masks, so many times each."""


def vectors_of(row: Row) -> dict[Any, int]:
    return {what: times for (kind, what), times in row.items() if kind == "vector"}


def without(rows: Sequence[Row], column: tuple[str, Any]) -> list[Row]:
    """The equations that follow and in which something does not occur any more."""
    pivot = next((row for row in rows if column in row), None)
    return [row if column not in row else less(row, pivot, column) for row in rows if row is not pivot]


def less(row: Row, pivot: Row, column: tuple[str, Any]) -> Row:
    """The row, some times, less the pivot, some times, so that the column falls out."""
    mine, other = row[column], pivot[column]
    found = {each: other * row.get(each, 0) - mine * pivot.get(each, 0) for each in row.keys() | pivot.keys()}
    divisor = gcd(*found.values())
    return {each: times // divisor for each, times in found.items() if times}


def shortest(rows: Sequence[Row]) -> list[Row]:
    """Sums of few vectors that follow and in which no mask occurs: among them the one of fewest.

    A sum of fewest vectors is, but for a factor, the only one that lacks all others; so each is found by taking out as
    many others as leave one equation. Vectors that occur in the same proportion everywhere are taken out together.
    """
    for column in {each: None for row in rows for each in row if each[0] == "mask"}:
        rows = without(rows, column)
    basis: list[Row] = []
    for column in {each: None for row in rows for each in row if each[0] == "vector"}:
        if (pivot := next((row for row in rows if column in row), None)) is not None:
            rows = without(rows, column)
            basis = [row if column not in row else less(row, pivot, column) for row in basis] + [pivot]
    columns: dict[tuple[int, ...], tuple[str, Any]] = {}
    for what in {each: None for row in basis for each in vectors_of(row)}:
        times = [row.get(("vector", what), 0) for row in basis]
        divisor = gcd(*times) * (1 if next(filter(None, times)) > 0 else -1)
        columns[tuple(each // divisor for each in times)] = ("vector", what)
    found = list(basis)
    for chosen in combinations(columns.values(), max(len(basis) - 1, 0)):
        left = basis
        for column in chosen:
            left = without(left, column)
        found += left if len(left) == 1 else []
    return found
