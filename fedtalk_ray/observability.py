"""What people watch: progress bars and TensorBoard."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

Item = TypeVar("Item")

console = Console(stderr=True, soft_wrap=True)
"""Progress goes to stderr, so that what a command prints on stdout can be piped."""


def progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yields the items under a progress bar with the time left."""
    with ticker(total, what) as tick:
        for item in items:
            yield item
            tick()


@contextlib.contextmanager
def ticker(total: int, what: str) -> Iterator[Callable[[], None]]:
    """A progress bar that advances by one at each call; a plain line at every tenth where there is no terminal."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.update(task, advance=1)
        return
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if done * 10 // total > (done - 1) * 10 // total:
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    yield tick


class RunLog:
    """TensorBoard of one run: scalars, pictures and short videos by round."""

    def __init__(self, folder: Path, first_round: int = 0) -> None:
        # After a resume, events from the round that runs again on would show twice: purge them.
        self._writer = SummaryWriter(str(folder), purge_step=first_round)

    def scalars(self, round_number: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, round_number)

    def image(self, round_number: int, name: str, picture: np.ndarray) -> None:
        """picture: uint8 [H, W, 3]."""
        self._writer.add_image(name, picture, round_number, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
