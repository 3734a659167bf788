"""What is made ahead: in order, so many at most, and not any longer than somebody wants it."""

import threading
from collections.abc import Iterator

import pytest

from fedtalk_ray.generation.ahead import ahead


def at_work() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "makes ahead"]


def test_the_next_is_made_while_one_is_used_and_no_more_than_are_held() -> None:
    made, used = [], threading.Semaphore(0)

    def make() -> Iterator[int]:
        for number in range(10):
            assert threading.current_thread() in at_work()
            made.append(number)
            used.release()
            yield number

    things = ahead(make(), held=2)
    assert next(things) == 0
    for _ in range(4):
        assert used.acquire(timeout=10), "made: the one that is used, two that are held, and one to be handed over"
    assert not used.acquire(timeout=0.05) and made == [0, 1, 2, 3]
    assert list(things) == list(range(1, 10)) and not at_work()


def test_an_error_comes_after_what_was_made_before_it() -> None:
    def made() -> Iterator[int]:
        yield 1
        raise ValueError("of the making")

    things = ahead(made())
    assert next(things) == 1
    with pytest.raises(ValueError, match="of the making"):
        next(things)
    assert not at_work()


def test_who_gives_up_ends_the_making() -> None:
    ended = threading.Event()

    def made() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            ended.set()

    endless = made()
    things = ahead(endless)
    next(things)
    things.close()
    assert not at_work()
    endless.close()
    assert ended.is_set()
