"""What marks promise beyond a short video: memory does not grow with the file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from fedtalk_ray.media.encoding import write_video
from tests.unit.marking.conftest import frames

__all__ = ["frames"]

SIGN = """
import sys, threading, time
import psutil
from pathlib import Path
from fedtalk_ray.marking import credentials
from fedtalk_ray.marking.certificates import trial_signing
signing, peak = trial_signing(), [0]
begin = psutil.Process().memory_info().rss
def watch():
    while True:
        peak[0] = max(peak[0], psutil.Process().memory_info().rss)
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
credentials.sign(Path(sys.argv[1]), Path(sys.argv[2]), signing, credentials.SYNTHETIC, None)
assert credentials.read(sys.argv[2]).fits
print((peak[0] - begin) >> 20)
"""


def test_signing_and_reading_take_no_more_memory_for_a_long_video(tmp_path: Path, frames: np.ndarray) -> None:
    write_video(tmp_path / "long.mp4", frames, None)
    # 100 MiB more in the box of the pictures, which nobody shows.
    content, more = (tmp_path / "long.mp4").read_bytes(), 100 << 20
    begin = content.index(b"mdat") - 4
    size = int.from_bytes(content[begin : begin + 4], "big")
    with open(tmp_path / "long.mp4", "wb") as file:
        file.write(content[:begin] + (size + more).to_bytes(4, "big") + content[begin + 4 : begin + size])
        for _ in range(100):
            file.write(os.urandom(1 << 20))
        file.write(content[begin + size :])
    command = [sys.executable, "-c", SIGN, tmp_path / "long.mp4", tmp_path / "signed.mp4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60, "MiB, of 100"
