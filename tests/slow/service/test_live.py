"""Live over a real WebSocket: frames while the sound comes, and what is refused."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import av
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from fedtalk_ray.service import live
from tests.served import TOKEN, Served, png, until

PIECE = np.random.default_rng(0).normal(0, 3000, 1600).astype("<i2").tobytes()
"""A tenth of a second."""


@contextmanager
def line_to(served: Served, token: str | None = TOKEN, **more: Any) -> Iterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    address = f"ws://127.0.0.1:{served.port}/v1/live"
    with connect(address, additional_headers=headers, proxy=None, max_size=None, **more) as line:
        yield line


def closed(line: ClientConnection) -> tuple[int | None, str | None]:
    with pytest.raises(ConnectionClosed):
        while True:
            line.recv(timeout=30)
    return line.close_code, line.close_reason


def test_frames_come_while_the_sound_does_and_all_of_it_is_spoken(served: Served) -> None:
    with line_to(served) as line:
        for message in (json.dumps({"identity": "c1", "seed": 3}), png(), *[PIECE] * 15):
            line.send(message)
        # The sound is not over, and half of it is shown.
        video = b""
        while len(times(video)) < 15:
            video += line.recv(timeout=30)
        line.send(PIECE)
        line.send("end")
        with suppress(ConnectionClosed):
            while True:
                video += line.recv(timeout=30)
        assert line.close_code == 1000
    assert times(video) == pytest.approx([number / 25 for number in range(40)])
    with av.open(io.BytesIO(video)) as container:
        heard = sum(frame.samples for frame in container.decode(audio=0))
    assert heard == pytest.approx(1.6 * 16_000, abs=2048)
    until(lambda: not list(served.folder.iterdir()))


def times(video: bytes) -> list[float]:
    """Of the frames that are there."""
    try:
        with av.open(io.BytesIO(video)) as container:
            return [float(packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.size]
    except (av.FFmpegError, IndexError):
        return []


BAD: dict[str, tuple[list[str | bytes], str]] = {
    "an unknown wish": ([json.dumps({"speed": 2})], "speed: "),
    "nobody of that name": ([json.dumps({"identity": "nobody"})], "identity 'nobody' has no adapter here"),
    "no face": (["{}", png()[:-40]], "reference: "),
    "half a sample": (["{}", png(), b"x"], "sound: "),
    "too large a picture": (["{}", b"x" * (3 << 20)], "reference: a binary message of at most 2 MiB"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_used_is_told_and_leaves_nothing(served: Served, kind: str) -> None:
    messages, why = BAD[kind]
    with line_to(served) as line:
        for message in messages:
            line.send(message)
        code, told = closed(line)
    assert code == 1008 and told is not None and told.startswith(why), told
    until(lambda: not list(served.folder.iterdir()))


def test_who_has_no_token_and_who_comes_from_elsewhere_get_nothing(served: Served) -> None:
    for more in ({"token": None}, {"token": "another-token-of-24-char"}, {"origin": "http://elsewhere.example"}):
        with pytest.raises(InvalidStatus), line_to(served, **more):
            pass


def test_whose_sound_is_late_is_told_and_has_not_the_worker_any_more(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SILENT_S", 0.5)
    with line_to(served) as line:  # who leaves frees the worker
        for message in ("{}", png(), PIECE):
            line.send(message)
        until(lambda: list(served.folder.iterdir()))
    until(lambda: not list(served.folder.iterdir()))
    with line_to(served) as line:
        for message in ("{}", png(), PIECE):
            line.send(message)
        code, told = closed(line)
    assert code == 1008 and told is not None and told.startswith("sound: it is 0.5 s late")
    until(lambda: not list(served.folder.iterdir()))


def test_a_sound_longer_than_any_may_be_is_spoken_up_to_there(served: Served) -> None:
    with line_to(served) as line:
        video = b""
        for message in ("{}", png(), *[PIECE] * 25):
            line.send(message)
        with suppress(ConnectionClosed):
            while True:
                video += line.recv(timeout=30)
        assert (line.close_code, line.close_reason) == (1000, "longer than 2 s")
    assert len(times(video)) == 50
