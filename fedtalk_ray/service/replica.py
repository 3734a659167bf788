"""Makes videos for a service that runs in another process: what was given comes as bytes, and so goes what was made."""

import asyncio
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

from fedtalk_ray.errors import UserError
from fedtalk_ray.generation.generate import Written
from fedtalk_ray.generation.scene import Stopped
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.service.making import MARKED, REFERENCE, SOUND, Wish, make_video, told

BLOCK = 1 << 20
"""Bytes of a finished video that are told at once."""


@dataclass(frozen=True)
class AtWork:
    """Another block of frames is begun: whoever asked may stop it now."""


@dataclass(frozen=True)
class Grown:
    """More of the video that is watched while it is made."""

    data: bytes


@dataclass(frozen=True)
class Made:
    """More of the finished video; with the last of it what it came to."""

    data: bytes
    written: Written | None = None


@dataclass(frozen=True)
class Refused:
    """What was given cannot be used. It crosses as a value: raised, Ray would put a traceback into its text."""

    why: str


News = AtWork | Grown | Made | Refused


async def make_elsewhere(
    model: TalkingHeadPipeline, wish: Wish, reference: bytes, sound: bytes, most_seconds: float, within: Path
) -> AsyncGenerator[News, None]:
    """What there is to tell while a video is made, in a thread beside the caller's loop. It ends with the last `Made`,
    or with `Refused`. Whoever stops listening stops it, within a block of frames; it has ended, and everything of it is
    gone, when this has. within: a folder in which it gets its own."""
    loop, told_here, stop = asyncio.get_running_loop(), asyncio.Queue[News | None](), threading.Event()

    def tell(news: News | None) -> None:
        loop.call_soon_threadsafe(told_here.put_nowait, news)

    def stopped() -> bool:
        tell(AtWork())
        return stop.is_set()

    working = asyncio.ensure_future(
        asyncio.to_thread(_make, model, wish, reference, sound, most_seconds, within, stopped, tell)
    )
    working.add_done_callback(lambda _: told_here.put_nowait(None))
    try:
        while (news := await told_here.get()) is not None:
            yield news
        await working
    finally:
        stop.set()
        await asyncio.wait([working])


def _make(
    model: TalkingHeadPipeline,
    wish: Wish,
    reference: bytes,
    sound: bytes,
    most_seconds: float,
    within: Path,
    stopped: Callable[[], bool],
    tell: Callable[[News], None],
) -> None:
    with tempfile.TemporaryDirectory(dir=within) as name:
        folder = Path(name)
        (folder / REFERENCE).write_bytes(reference)
        (folder / SOUND).write_bytes(sound)
        try:
            written = make_video(model, folder, wish, most_seconds, stopped, _Telling(tell) if wish.stream else None)
        except Stopped:
            return
        except UserError as error:
            tell(Refused(told(error, folder)))
            return
        with open(folder / MARKED, "rb") as file:
            while block := file.read(BLOCK):
                tell(Made(block))
        tell(Made(b"", written))


class _Telling:
    """A file of which what is written is told."""

    def __init__(self, tell: Callable[[News], None]) -> None:
        self._tell = tell

    def write(self, data: bytes, /) -> int:
        self._tell(Grown(bytes(data)))
        return len(data)
