"""How soon a video that is streamed begins, and whether a player would wait for it.

python -m jobs.benchmarks.streamed --picture face.png --sound speech.wav --times 4     # beside `fedtalk app`

A frame is there when the part of the video that holds the end of it has come. `--body FILE` writes the request in
place of sending it, for programs that ask many times at once, such as Apache's `ab`.
"""

import argparse
import http.client
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from jobs.benchmarks.live import delays

BOUNDARY = "xx"
"""Between the parts of the form; neither pictures nor sound may hold a line of "--xx", and none does by chance."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", default="http://127.0.0.1:8080")
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--sound", type=Path, required=True)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--body", type=Path, help="writes the request of an unstreamed video there, and asks nothing")
    asked = parser.parse_args()
    try:
        picture, sound = asked.picture.read_bytes(), asked.sound.read_bytes()
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}; give a picture and a sound file")
    if asked.body is not None:
        asked.body.write_bytes(form(picture, sound, stream=False))
        print(f"{asked.body}: multipart/form-data; boundary={BOUNDARY}")
        return
    for _ in range(asked.times):
        try:
            video, came = ask(asked.address, form(picture, sound, stream=True))
        except OSError as error:
            sys.exit(f"{asked.address}: {error}; start `fedtalk app` first")
        late = delays(video, came)
        waits = float(np.max(late - late[0]))
        print(f"{len(late)} frames; the first after {late[0]:.2f} s, all after {came[-1][0]:.2f} s;", end=" ")
        print(f"a player that begins with the first waits {max(0.0, waits):.2f} s")


def form(picture: bytes, sound: bytes, stream: bool) -> bytes:
    """The body of `POST /v1/generate`."""
    parts = [("reference", "reference", picture), ("sound", "sound", sound)]
    if stream:
        parts.append(("stream", "", b"true"))
    body = b""
    for name, file, value in parts:
        named = f'; filename="{file}"' if file else ""
        body += (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + value + b"\r\n"
        )
    return body + f"--{BOUNDARY}--\r\n".encode()


def ask(address: str, body: bytes) -> tuple[bytes, list[tuple[float, int]]]:
    """The video, and when how much of it had come: seconds after it was asked for, bytes."""
    place = urlsplit(address)
    line = http.client.HTTPConnection(place.hostname or "127.0.0.1", place.port or 80)
    video, came, began = b"", [], time.monotonic()
    line.request("POST", "/v1/generate", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
    answer = line.getresponse()
    if answer.status != 200:
        sys.exit(f"{address}: {answer.status} {answer.read().decode(errors='replace')}")
    while piece := answer.read1(1 << 16):
        video += piece
        came.append((time.monotonic() - began, len(video)))
    return video, came


if __name__ == "__main__":
    main()
