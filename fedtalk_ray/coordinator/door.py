"""Accepts connections so that silent and half-open ones cost little, and hands the others to uvicorn's HTTP.

asyncio makes a buffer of 256 KiB for each TLS connection before a byte has arrived, and waits a minute: ten thousand
that say nothing would take 2.5 GiB. So a connection is a bare socket until its first byte is there. From then until its
first request it is a stranger, of whom there are so many: one more, and the oldest is let go. Who means it is one for
less than a second.
"""

import asyncio
import gc
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.server import ServerState

MOST_SILENT = 20_000
"""Connections before their first byte; of more, the new ones are closed at once."""

MOST_OPEN = 4_096
"""Connections with TLS."""

MOST_STRANGERS = 128
"""Connections that shake hands, or have not asked for anything yet."""

FIRST_BYTE_S, FIRST_REQUEST_S = 10.0, 10.0
"""Seconds until a connection's first byte, and from there to its first request."""

SHUTDOWN_S = 1.0
"""Seconds that the other side has to agree to a connection's end, which it keeps its buffer for."""


@dataclass(eq=False)
class _Stranger:
    """transport, protocol: once it has TLS. over: that nobody waits for its first request any more."""

    task: asyncio.Task[None]
    transport: asyncio.Transport | None = None
    protocol: Any = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def let_go(self) -> None:
        """Unless it has asked for something by now."""
        if self.transport is None:
            self.task.cancel()
        elif self.protocol.cycle is None:
            self.transport.abort()
        # The task holds the connection, and its buffer, as long as it waits.
        self.over.set()


@dataclass
class Door:
    """One listening socket, and who came in by it."""

    listening: socket.socket
    config: uvicorn.Config
    context: ssl.SSLContext
    _state: ServerState = field(default_factory=ServerState)
    _coming: set[asyncio.Task[None]] = field(default_factory=set)
    _strangers: dict[_Stranger, None] = field(default_factory=dict)
    _entrance: asyncio.Lock = field(default_factory=asyncio.Lock)
    _gone: int = 0

    async def keep_open(self) -> None:
        """Lets connections in until it is cancelled; then it closes them all."""
        loop = asyncio.get_running_loop()
        self.config.load()
        self._state.default_headers = list(self.config.encoded_headers)
        self.listening.setblocking(False)
        try:
            while True:
                try:
                    came, _ = await loop.sock_accept(self.listening)
                except OSError:
                    # No file descriptor is left, or who came is gone; the others wait in the system's queue.
                    await asyncio.sleep(0.1)
                    continue
                if len(self._coming) >= MOST_SILENT:
                    came.close()
                    continue
                task = asyncio.create_task(self._let_in(came))
                self._coming.add(task)
                task.add_done_callback(self._coming.discard)
        finally:
            self.listening.close()
            for task in self._coming:
                task.cancel()
            for connection in list(self._state.connections):
                connection.transport.abort()

    async def _let_in(self, came: socket.socket) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        stranger = _Stranger(task)
        try:
            came.setblocking(False)
            async with asyncio.timeout(FIRST_BYTE_S):
                await _readable(came)
            if len(self._state.connections) >= MOST_OPEN:
                came.close()
                return
            async with self._entrance:
                if len(self._strangers) >= MOST_STRANGERS:
                    self._make_room()
                    # Until the oldest is gone: a flood that arrives at once would else be let in at once.
                    for _ in range(3):
                        await asyncio.sleep(0)
                self._strangers[stranger] = None
            async with asyncio.timeout(FIRST_REQUEST_S):
                stranger.transport, stranger.protocol = await loop.connect_accepted_socket(
                    self._protocol, came, ssl=self.context, ssl_shutdown_timeout=SHUTDOWN_S
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(stranger.over.wait(), FIRST_REQUEST_S)
            stranger.let_go()
        except (OSError, TimeoutError, asyncio.CancelledError):
            # A refusal of TLS is an OSError too. Nobody waits for this task.
            came.close()
        finally:
            self._strangers.pop(stranger, None)
            self._gone += 1
            if self._gone % MOST_STRANGERS == 0:
                # asyncio's TLS objects refer to each other: a buffer each, until Python looks for such rings. This task
                # holds its own until it has ended.
                asyncio.get_running_loop().call_soon(gc.collect)

    def _make_room(self) -> None:
        # Apart: a name for the oldest in the frame of the one after it would hold all of them in a chain.
        oldest = next(iter(self._strangers))
        del self._strangers[oldest]
        oldest.let_go()

    def _protocol(self) -> "asyncio.Protocol":
        kind: type = self.config.http_protocol_class
        made: asyncio.Protocol = kind(config=self.config, server_state=self._state, app_state={})
        return made


async def _readable(came: socket.socket) -> None:
    """Waits for a first byte, which stays where it is."""
    loop, there = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(came, there.set)
    try:
        await there.wait()
    finally:
        loop.remove_reader(came)
