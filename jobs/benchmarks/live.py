"""How long after its sound a live frame is there, and whether all of them come.

python -m jobs.benchmarks.live --picture face.png --sound speech.wav --seconds 30   # beside `fedtalk app`

The sound is said again and again, a tenth of a second at a time, as a microphone would send it. A frame is there when
the part of the video that holds the end of it has come.
"""

import argparse
import io
import json
import threading
import time
from pathlib import Path

import av
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from fedtalk_ray.media.video import FPS, SAMPLE_RATE, read_audio

PIECE = SAMPLE_RATE // 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", default="ws://127.0.0.1:8080/v1/live")
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--sound", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=30.0)
    asked = parser.parse_args()
    samples = np.resize(read_audio(asked.sound), int(asked.seconds * SAMPLE_RATE))
    try:
        video, came = speak(asked.address, asked.picture.read_bytes(), (samples * 32767).astype("<i2"))
    except OSError as error:
        raise SystemExit(f"{asked.address} or {asked.picture}: {error}; start `fedtalk app` first") from error
    late = delays(video, came)
    expected = -(-len(samples) * FPS // SAMPLE_RATE)
    print(f"{len(late)} frames of {expected}; delay in s: first {late[0]:.2f}, median {np.median(late):.2f},")
    print(f"95% within {np.quantile(late, 0.95):.2f}, at most {late.max():.2f}, last {late[-1]:.2f}")


def speak(address: str, picture: bytes, samples: np.ndarray) -> tuple[bytes, list[tuple[float, int]]]:
    """The video, and when how much of it had come: seconds after the sound began, bytes."""
    video, came = b"", []
    with connect(address, max_size=None, proxy=None) as line:
        line.send(json.dumps({}))
        line.send(picture)
        began = time.monotonic()

        def say() -> None:
            for at in range(0, len(samples), PIECE):
                time.sleep(max(0.0, began + (at + PIECE) / SAMPLE_RATE - time.monotonic()))
                line.send(samples[at : at + PIECE].tobytes())
            line.send("end")

        threading.Thread(target=say, daemon=True).start()
        try:
            while True:
                video += line.recv(decode=False)
                came.append((time.monotonic() - began, len(video)))
        except ConnectionClosed:
            if line.close_code != 1000:
                raise SystemExit(f"{address}: {line.close_reason}") from None
    return video, came


def delays(video: bytes, came: list[tuple[float, int]]) -> np.ndarray:
    """Of every frame, seconds from the beginning of its sound to its picture, float64 [frames]."""
    with av.open(io.BytesIO(video), "r") as container:
        base = container.streams.video[0].time_base
        packets = [packet for packet in container.demux(video=0) if packet.size]
        ends = [((packet.pos or 0) + packet.size, float((packet.pts or 0) * (base or 0))) for packet in packets]
    return np.array([next(when for when, size in came if size >= end) - shown for end, shown in ends])


if __name__ == "__main__":
    main()
