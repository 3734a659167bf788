"""Clients that hold given pieces, and all rounds of a phase with one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np

    from fedtalk_ray.shards.format import Piece
    from fedtalk_ray.training.phases.phase import Fitted, Task


class Holding:
    """Stands for `People` where phases ask for whole pieces: every name holds the same ones, in every split. Names that
    are numbers are so many clients of one person."""

    def __init__(self, held: list[Piece], clients: int = 1) -> None:
        self.held, self.clients = held, clients

    def turn(self, name: str) -> tuple[int, int]:
        return (int(name) if name.isdecimal() else 0), self.clients

    def pieces(self, name: str, split: str, columns: tuple[str, ...]) -> Iterator[Piece]:
        return iter(self.held)


def task_of_client(
    held: Any, shared: np.ndarray, number: int = 1, rounds: int = 1, client: str = "s1", seed: int = 0, **more: Any
) -> Task:
    """A client's work in one of a phase's rounds, which are the run's first. held: pieces, or real `People`."""
    from fedtalk_ray.recipe import PhaseRounds
    from fedtalk_ray.training.phases.phase import Task

    people: Any = Holding(held) if isinstance(held, list) else held
    return Task(people, client, shared, number, PhaseRounds("decoder", 1, rounds), 1000 * seed + number, **more)


def run_all_rounds(phase: Any, held: Any, rounds: int = 1, **more: Any) -> list[Fitted]:
    """All rounds of a phase with one client, and its end."""
    shared, answers = phase.initial(), []
    for number in range(1, rounds + 1):
        answers.append(phase.fit(task_of_client(held, shared, number, rounds, **more)))
        shared = shared + answers[-1].update
    phase.finish(shared)
    return answers


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    return task_of_client


@pytest.fixture(scope="session")
def all_rounds() -> Callable[..., list[Fitted]]:
    return run_all_rounds


@pytest.fixture(scope="session")
def pieces(make_shards: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> list[Piece]:
    """What each of three people trains on: one clip."""
    from fedtalk_ray.shards.people import People

    folder, names = tmp_path_factory.mktemp("pieces") / "shards", ("s1", "s2", "s3")
    people = People(folder, make_shards(folder, {name: [30, 30] for name in names}))
    return [piece for name in names for piece in people.pieces(name, "train")]
