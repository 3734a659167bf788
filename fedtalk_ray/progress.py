"""Progress bars, and the plain lines that stand for them in a log."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
