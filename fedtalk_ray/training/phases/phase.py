"""What all phases have in common: what a client is given, what it answers, and a digest of what stays frozen."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch

from fedtalk_ray.recipe import Pace, PhaseRounds
from fedtalk_ray.seeding import derive_seed
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.people import People
from fedtalk_ray.training.reliability import Reliability

Item = TypeVar("Item")


class Halted(Exception):
    """The caller asked for an end before the client was done; nothing of its work is kept."""


@dataclass(frozen=True)
class Task:
    """One client's work in one round.

    shared: float32 [D] from the server. number: the round's in the run. phase: the rounds of this phase. identity: the
    client's own adapter, float32 [E], None for a first time. halted: asked before every step; `Halted` is raised at a
    yes.
    """

    people: People
    client: str
    shared: np.ndarray
    number: int
    phase: PhaseRounds
    seed: int
    identity: np.ndarray | None = None
    halted: Callable[[], bool] = lambda: False

    @property
    def index(self) -> int:
        """The round within its phase, from 0."""
        return self.number - self.phase.first

    def pace(self, peak: float, steps: int) -> Pace:
        """The learning rate over all rounds of the phase, of so many steps each."""
        return Pace.in_round(self.number, self.phase, peak, steps)


@dataclass
class Fitted:
    """What one client's work leaves. `update` may leave the client; `identity` must not.

    update: float32 [D], to be added to the shared vector. losses: mean terms over the steps, empty for statistics.
    identity: the client's own adapter, float32 [E], where the phase trains one. reliability: where a score was asked
    for.
    """

    update: np.ndarray
    losses: dict[str, float] = field(default_factory=dict)
    identity: np.ndarray | None = None
    reliability: Reliability | None = None


Score = Callable[[Task], Reliability]
"""Judges a client by the model as its training left it (ISFA)."""


class Phase(Protocol):
    """One phase on one slot's resident model."""

    def initial(self) -> np.ndarray:
        """The shared vector before the phase's first round, float32 [D], the same in every slot."""

    def fit(self, task: Task) -> Fitted:
        """One client's work in one round. Raises `TrainingError` where it has nothing to give."""

    def finish(self, vector: np.ndarray) -> None:
        """Puts the phase's result where it belongs in the model."""

    def frozen(self) -> bytes:
        """SHA-256 of what all clients must have in common beside the shared vector."""


def state_digest(state: Mapping[str, torch.Tensor], moving: Iterable[str] = ()) -> bytes:
    """SHA-256 over a state dict, without the names in `moving`."""
    total, left_out = hashlib.sha256(), set(moving)
    for name, value in sorted(state.items()):
        if name not in left_out:
            total.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            total.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return total.digest()


def task_of(
    config: TrainConfig,
    people: People,
    client: str,
    number: int,
    shared: np.ndarray,
    identity: np.ndarray | None = None,
    halted: Callable[[], bool] = lambda: False,
    phase: PhaseRounds | None = None,
) -> Task:
    """A client's work in a round of a run. phase: the round's own, where the plan does not know how long it will be."""
    seed = derive_seed(config.seed, "fit", number, client)
    return Task(people, client, shared, number, phase or config.phase_at(number), seed, identity, halted)


def until_halted(task: Task, items: Iterable[Item]) -> Iterator[Item]:
    """The items, for as long as nobody wants an end."""
    if task.halted():
        raise Halted
    for item in items:
        yield item
        if task.halted():
            raise Halted
