"""A file that is read while it is written: who watches a video while its frames come."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

BLOCK = 1 << 16


class GrowingFile:
    """Written by one thread, once; read by any number of coroutines, each from its beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "wb")  # noqa: SIM115 (closed by `close`)
        self._readers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def write(self, data: bytes) -> int:
        count = self._file.write(data)
        self._file.flush()
        self._wake()
        return count

    def close(self) -> None:
        """Nothing more comes. May be called again."""
        self._file.close()
        self._wake()

    async def blocks(self) -> AsyncIterator[bytes]:
        """What is there and what is still to come. Raises `FileNotFoundError` where the file is gone."""
        news = asyncio.Event()
        reader = asyncio.get_running_loop(), news
        self._readers.add(reader)
        try:
            with open(self._path, "rb") as file:
                ended = False
                while not ended:
                    news.clear()
                    # Asked before reading: what is written between the two is read.
                    ended = self._file.closed
                    while block := file.read(BLOCK):
                        yield block
                    if not ended:
                        await news.wait()
        finally:
            self._readers.discard(reader)

    def _wake(self) -> None:
        for loop, news in list(self._readers):
            if not loop.is_closed():
                loop.call_soon_threadsafe(news.set)
