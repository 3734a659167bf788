"""One thread makes while another uses: the network works on the next frames while these are composed and coded."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")

HELD = 2
"""What is made and not yet used, at most: enough that neither waits for the other's slower moments."""


def ahead(made: Iterable[T], held: int = HELD) -> Generator[T, None, None]:
    """The same things in the same order, made by a thread of their own, at most `held` of them ahead.

    What the making raises is raised here, in its place. Where this ends early (closed, or given up), so does the
    making, after the thing that it is at; it is waited for.
    """
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(held)
    given_up = threading.Event()

    def make() -> None:
        try:
            for thing in made:
                ready.put((True, thing))
                del thing
                if given_up.is_set():
                    return
            ready.put((False, None))
        except BaseException as error:
            ready.put((False, error))

    thread = threading.Thread(target=make, name="makes ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, thing = ready.get()
            if not more:
                if isinstance(thing, BaseException):
                    raise thing
                return
            yield thing  # type: ignore[misc]
            del thing  # before the next is waited for, as in the making: nothing used stays in memory
    finally:
        given_up.set()
        # Room for what it is about to hand over, which is the last.
        while not ready.empty():
            ready.get_nowait()
        thread.join()
