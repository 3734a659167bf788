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
    subprocess.run(
        [sys.executable, "-m", "fedtalk_ray.commands.cli", "demo", "--out", str(out)], check=True, timeout=1700
    )
    for name in ("id0000", "id0006"):
        video = read_video(out / f"{name}.mp4")
        assert video.frames.shape == (75, 256, 256, 3)
        assert abs(len(video.audio) / 16_000 - 3.0) < 0.08
    groups = json.loads((out / "run" / "metrics.json").read_text())["groups"]
    for group in ("seen", "unseen"):
        right, wrong = (groups[group][row]["lip_correlation_spoken"] for row in ("generated", "other sound"))
        assert right > 0.5 and right > wrong + 0.4
        assert groups[group]["generated"]["psnr"] > 24
