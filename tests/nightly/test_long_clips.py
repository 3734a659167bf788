"""A long clip in 1080p needs hardly more memory than a short one, to prepare it and to give it another mouth."""

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.shards.format import load_manifest
from tests.nightly.conftest import LONG


def write_talk(path: Path, seconds: int) -> Path:
    """A drawn face of 400 pixels that speaks in a grey picture of 1920 x 1080, with its sound; PyAV, H.264 and AAC."""
    clip = render_clip(2, 0, size=400, seconds=2.0).video
    picture = np.full((1080, 1920, 3), 128, np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("h264", rate=25, options={"crf": "30", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 1920, 1080, "yuv420p"
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        for number in range(25 * seconds):
            picture[300:700, 700:1100] = clip.frames[number % len(clip.frames)]
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        audio = np.resize(clip.audio, 16_000 * seconds).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(audio[None], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


def peak(arguments: list[str]) -> float:
    """MiB that a command and all the processes that it starts hold at most together, shared pages counted once."""
    command = [sys.executable, "-m", "fedtalk_ray.commands.cli", *arguments]
    # Not through a pipe: nobody reads it meanwhile.
    with tempfile.TemporaryFile() as told, subprocess.Popen(command, stdout=told, stderr=told) as process:
        most, tree = 0.0, psutil.Process(process.pid)
        while process.poll() is None:
            held = 0
            for each in (tree, *children_of(tree)):
                with contextlib.suppress(psutil.Error):
                    held += each.memory_full_info().pss
            most = max(most, held)
            time.sleep(0.2)
        told.seek(0)
        assert process.returncode == 0, told.read().decode()
    return most / 2**20


def children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("command", "short", "long", "most"),
    [("prepare", 2, 120 if LONG else 40, 5.0), ("generate", 10, 600 if LONG else 120, 1.0)],
)
def test_memory_does_not_grow_with_a_clips_length(
    command: str, short: int, long: int, most: float, tmp_path: Path
) -> None:
    """short, long: seconds. most: MiB more for each second more. With FEDTALK_LONG=1 the clips are minutes long."""
    found = {}
    for seconds in (short, long):
        root = tmp_path / f"{seconds}"
        (root / "ann").mkdir(parents=True)
        clip, out = str(write_talk(root / "ann" / "talk.mp4", seconds)), str(root / "out.mp4")
        arguments = {
            "prepare": f"prepare --corpus folder --root {root} --out {root / 'shards'} --speech log-mel",
            "generate": f"generate --run fedtalk-tiny --reference {clip} --audio {clip} --out {out}",
        }[command]
        found[seconds] = peak(arguments.split())
        if command == "prepare":
            (entry,) = load_manifest(root / "shards").identities["ann"]
            assert entry.frames == 25 * seconds
    print(f"{command}: {short} s {found[short]:.0f} MiB, {long} s {found[long]:.0f} MiB")
    assert found[long] - found[short] < most * (long - short)
