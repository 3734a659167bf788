"""`/v1/live`, a WebSocket: sound goes in while somebody speaks, and a picture that says it comes out.

First a text, the wish as JSON; then the picture, one binary message; then sound, binary messages of 16-bit samples,
mono, 16 kHz, little-endian; at its end the text "end". Out come the parts of a fragmented MP4, binary messages.
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Annotated

import numpy as np
from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from fedtalk_ray.errors import UserError
from fedtalk_ray.generation.live import check_live, speak_live
from fedtalk_ray.media.live_sound import LiveSound
from fedtalk_ray.media.video import SAMPLE_RATE
from fedtalk_ray.service.jobs import QueueFull
from fedtalk_ray.service.making import REFERENCE
from fedtalk_ray.service.speaker import Speaker, check_identity
from fedtalk_ray.service.speaking import NO_ROOM, Speaking, why_not

SILENT_S = 10.0
"""So many seconds a client may be late: with its next message, and with its sound, which comes as one speaks."""

BEHIND_S = 5.0
"""So much sound may wait to be spoken; with more of it the machine is too slow, and that is told."""

LARGEST = 16 << 20
"""Bytes of the picture, of which a WebSocket here takes no more in one message."""

MOST_LINES = 16
"""Open at once; who opens one more is told to come later."""

WENT_WELL, UNUSABLE, OURS, TRY_LATER = 1000, 1008, 1011, 1013
"""Codes that a connection is closed with."""


HERE_ALONE = "live is spoken by this process alone: start it without replicas"


def why_not_live(speaking: Speaking) -> str | None:
    """Why nobody can speak live here; None where one can."""
    if not isinstance(speaking.maker, Speaker):
        return HERE_ALONE
    try:
        check_live(speaking.maker.model())
    except UserError as error:
        return str(error)
    return None


class LiveWish(BaseModel):
    """How a picture is to speak."""

    model_config = ConfigDict(extra="forbid")

    identity: str | None = None
    crop: bool = False
    hold_still: bool = False
    face: Annotated[int | None, Field(ge=1, le=1000)] = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class _Told:
    """A file whose parts a coroutine waits for."""

    def __init__(self) -> None:
        self._loop, self.parts = asyncio.get_running_loop(), asyncio.Queue[bytes | None]()

    def write(self, data: bytes) -> int:
        self._loop.call_soon_threadsafe(self.parts.put_nowait, bytes(data))
        return len(data)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self.parts.put_nowait, None)


def live_endpoint(speaking: Speaking, most_seconds: float, most_bytes: int) -> APIRouter:
    """most_seconds: of sound. most_bytes: of the picture."""
    router, largest, lines = APIRouter(), min(most_bytes, LARGEST), 0

    @router.websocket("/v1/live")
    async def live(line: WebSocket) -> None:
        nonlocal lines
        lines += 1
        try:
            await line.accept()
            with contextlib.suppress(WebSocketDisconnect):  # who is gone is told nothing
                code, why = TRY_LATER, "as many speak as may; come later"
                if lines <= MOST_LINES:
                    code, why = await _live(line, speaking, most_seconds, largest)
                # Who reads nothing would never be rid of.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(line.close(code, why.encode()[:120].decode(errors="ignore")), SILENT_S)
        finally:
            lines -= 1

    return router


async def _live(line: WebSocket, speaking: Speaking, most_seconds: float, most_bytes: int) -> tuple[int, str]:
    """The code to close with, and why it was not spoken to the end. Raises `WebSocketDisconnect`."""
    maker = speaking.maker
    if not isinstance(maker, Speaker):
        return UNUSABLE, HERE_ALONE
    try:
        wish = LiveWish.model_validate_json((await _message(line)).get("text") or "")
        await asyncio.to_thread(check_identity, speaking.run, wish.identity)
        picture = (await _message(line)).get("bytes")
    except ValidationError as error:
        first = error.errors()[0]
        return UNUSABLE, f"{'.'.join(map(str, first['loc'])) or 'the wish, a text of JSON'}: {first['msg']}"
    except UserError as error:
        return UNUSABLE, str(error)
    except TimeoutError:
        return UNUSABLE, f"nothing came for {SILENT_S:g} s"
    if not picture or len(picture) > most_bytes:
        return UNUSABLE, f"reference: a binary message of at most {most_bytes >> 20} MiB comes after the wish"
    sound, told = LiveSound(), _Told()

    def work(folder: Path, stopped: Callable[[], bool]) -> int:
        (folder / REFERENCE).write_bytes(picture)
        return speak_live(
            maker.model(wish.identity),
            str(folder / REFERENCE),
            sound,
            told,  # type: ignore[arg-type]  # `write` is all that is asked of it
            most_seconds,
            crop=wish.crop,
            face=wish.face,
            hold_still=wish.hold_still,
            seed=wish.seed,
            stopped=stopped,
        )

    try:
        job = await asyncio.to_thread(speaking.queue.new)
    except QueueFull as error:
        return TRY_LATER, str(error)
    except OSError:
        return OURS, NO_ROOM
    speaking.queue.begin(job, work)
    job.result.add_done_callback(lambda _: told.end())
    hears = asyncio.ensure_future(_hear(line, sound, most_seconds))
    shows = asyncio.ensure_future(_show(line, told))
    try:
        ended, _ = await asyncio.wait({hears, shows}, return_when=asyncio.FIRST_COMPLETED)
        if shows not in ended:
            return hears.result()
        shows.result()
        if job.error is not None:
            why = why_not(job.error, job)
            return (OURS, "an error of the service's own; its log says which") if why is None else (UNUSABLE, why)
        return WENT_WELL, f"longer than {most_seconds:g} s" if len(sound) > most_seconds * SAMPLE_RATE else ""
    finally:
        # A maker that waits for sound hears that none comes.
        sound.end()
        hears.cancel()
        shows.cancel()
        await asyncio.shield(asyncio.to_thread(speaking.queue.drop, job))


async def _message(line: WebSocket, within: float | None = None) -> Message:
    """The next one. Raises `WebSocketDisconnect`, and `TimeoutError` where none comes within so many seconds."""
    message = await asyncio.wait_for(line.receive(), SILENT_S if within is None else within)
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect
    return message


async def _hear(line: WebSocket, sound: LiveSound, most_seconds: float) -> tuple[int, str]:
    """Fills the sound, and goes on listening for who hangs up. Returns where it breaks off: code and line."""
    began = monotonic()
    while not sound.ended:
        try:
            message = await _message(line, began + len(sound) / SAMPLE_RATE + SILENT_S - monotonic())
        except TimeoutError:
            return UNUSABLE, f"sound: it is {SILENT_S:g} s late; send silence while nobody speaks"
        if message.get("text") == "end":
            break
        data = message.get("bytes")
        if not data or len(data) % 2:
            return UNUSABLE, 'sound: binary messages of 16-bit samples, and at the end the text "end"'
        sound.add(np.frombuffer(data, "<i2").astype(np.float32) / 32768)
        if len(sound) > most_seconds * SAMPLE_RATE:
            break
        if len(sound) - sound.asked > BEHIND_S * SAMPLE_RATE:
            return TRY_LATER, "this machine cannot keep up, or makes other videos first; ask again later"
    sound.end()
    while (await line.receive())["type"] != "websocket.disconnect":
        pass
    raise WebSocketDisconnect


async def _show(line: WebSocket, told: _Told) -> None:
    """Raises `WebSocketDisconnect` for who does not read either."""
    while (part := await told.parts.get()) is not None:
        try:
            await asyncio.wait_for(line.send_bytes(part), SILENT_S)
        except TimeoutError:
            raise WebSocketDisconnect from None
