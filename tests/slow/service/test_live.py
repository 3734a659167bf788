"""Live over a real WebSocket: frames while the sound comes, and what is refused."""

import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.uri import parse_uri

from fedtalk_ray.service import live
from tests.served import TOKEN, Served, form, png, until

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
        line.send(json.dumps({"identity": "c1", "seed": 3}))
        line.send(png())
        for _ in range(15):
            line.send(PIECE)
        # The sound is not over, and half of it is shown.
        video = b""
        while len(times(video)) < 15:
            video += line.recv(timeout=30)
        line.send(PIECE)
        line.send("end")
        try:
            while True:
                video += line.recv(timeout=30)
        except ConnectionClosed:
            pass
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
    "no wish": ([b"x"], "the wish, a text of JSON: "),
    "an unknown wish": ([json.dumps({"speed": 2})], "speed: "),
    "nobody of that name": ([json.dumps({"identity": "nobody"})], "identity 'nobody' has no adapter here"),
    "no picture": (["{}", "x"], "reference: "),
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


def test_who_leaves_frees_the_worker(served: Served) -> None:
    with line_to(served) as line:
        line.send("{}")
        line.send(png())
        line.send(PIECE)
        until(lambda: list(served.folder.iterdir()))
    until(lambda: not list(served.folder.iterdir()))
    assert served.ask("GET", "/v1/health").ok


@pytest.mark.parametrize("said", ["nothing", "a drop now and then"])
def test_whose_sound_is_late_is_told_and_has_not_the_worker_any_more(
    served: Served, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(live, "SILENT_S", 2.0)
    with line_to(served) as line:
        began = time.monotonic()
        line.send("{}")
        line.send(png())
        line.send(PIECE)
        until(lambda: list(served.folder.iterdir()))
        if said != "nothing":
            with suppress(ConnectionClosed):
                for _ in range(40):
                    line.send(b"\0\0")
                    time.sleep(0.1)
        code, told = closed(line)
        # Each drop is no new second: they come for four.
        assert 2 <= time.monotonic() - began < 5
    assert code == 1008 and told is not None and told.startswith("sound: it is 2 s late")
    until(lambda: not list(served.folder.iterdir()))


def test_who_does_not_read_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SILENT_S", 1.0)
    written = []

    def much(_: Any, __: str, sound: Any, growing: Any, *___: Any, **____: Any) -> int:
        written.extend(growing.write(bytes(1 << 18)) for _part in range(200))
        return 0

    monkeypatch.setattr(live, "speak_live", much)
    protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{served.port}/v1/live"))
    asked = protocol.connect()
    asked.headers["Authorization"] = f"Bearer {TOKEN}"
    with socket.create_connection(("127.0.0.1", served.port), 10) as line:
        protocol.send_request(asked)
        line.sendall(b"".join(protocol.data_to_send()))
        protocol.receive_data(line.recv(4096))
        protocol.send_text(b"{}")
        protocol.send_binary(png())
        protocol.send_text(b"end")  # so that it is not the sound that is late
        line.sendall(b"".join(protocol.data_to_send()))
        until(lambda: sum(written) == 200 << 18)
        until(lambda: not list(served.folder.iterdir()))
        # Most of the fifty megabytes was never sent, and the line is still open.
        line.settimeout(5)
        taken = sum(iter(lambda: len(line.recv(1 << 20)), 0))
        assert taken < 100 << 18
    assert served.ask("POST", "/v1/generate", files=form()).status_code == 200


def test_beyond_so_many_lines_the_next_is_told_to_come_later(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_LINES", 1)
    with line_to(served), line_to(served) as second:
        assert closed(second) == (1013, "as many speak as may; come later")


def test_a_sound_longer_than_any_may_be_is_spoken_up_to_there(served: Served) -> None:
    with line_to(served) as line:
        line.send("{}")
        line.send(png())
        video = b""
        for _ in range(25):
            line.send(PIECE)
        try:
            while True:
                video += line.recv(timeout=30)
        except ConnectionClosed:
            pass
        assert (line.close_code, line.close_reason) == (1000, "longer than 2 s")
    assert len(times(video)) == 50


def test_where_the_machine_cannot_keep_up_it_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "BEHIND_S", 0.5)

    def slow(*_: Any, stopped: Callable[[], bool], **__: Any) -> None:
        while not stopped():
            time.sleep(0.05)

    monkeypatch.setattr(live, "speak_live", slow)
    with line_to(served) as line:
        line.send("{}")
        line.send(png())
        for _ in range(6):
            line.send(PIECE)
        code, told = closed(line)
    assert code == 1013 and told is not None and "cannot keep up" in told
    until(lambda: not list(served.folder.iterdir()))


def test_replicas_do_not_speak_live(served: Served, run: Path, tmp_path: Path) -> None:
    class Elsewhere:
        at_once, elsewhere = 1, True

    other = Served(run, tmp_path / "jobs", maker=Elsewhere())  # type: ignore[arg-type]
    try:
        with line_to(other) as line:
            assert closed(line) == (1008, "live is spoken by this process alone: start it without replicas")
    finally:
        other.close()
