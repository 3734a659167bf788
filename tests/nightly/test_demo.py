"""The demo as a newcomer runs it: what it promises is there, and lips follow the sound."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedtalk_ray.media.video import read_video


@pytest.mark.timeout(1800)
def test_the_demo_makes_a_face_whose_lips_follow_its_sound(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "fedtalk_ray.commands.cli", "demo", "--out", str(out)]
    done = subprocess.run(command, check=True, timeout=1700, stdout=subprocess.PIPE, text=True)
    for name in ("id0000", "id0008"):
        video = read_video(out / f"{name}.mp4")
        assert video.frames.shape == (75, 256, 256, 3)
        assert abs(len(video.audio) / 16_000 - 3.0) < 0.08
    groups = json.loads((out / "run" / "metrics.json").read_text())["groups"]
    right, wrong = (groups["unseen"][row]["lip_correlation_spoken"] for row in ("generated", "other sound"))
    assert right > 0.5 and right > wrong + 0.4
    assert groups["unseen"]["generated"]["psnr"] > 24
    assert (out / "before-and-after.png").is_file()
    gains = [line for line in done.stdout.splitlines() if " before, " in line]
    assert len(gains) == 2 and not any("no gain" in line for line in gains), done.stdout
