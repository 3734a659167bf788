"""Clips read without any network: what a process loads for it, and a real one from file to row."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.corpora.listing import list_corpus
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE
from fedtalk_ray.shards.reading import read_parts


@pytest.mark.nightly
def test_who_reads_clips_loads_no_networks() -> None:
    """A cluster starts several such processes, and each would take seconds and hundreds of megabytes."""
    look = "import sys, fedtalk_ray.shards.reading; print({'diffusers', 'peft', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.grid
def test_a_real_clip_is_decoded_its_face_found_and_prepared(grid_root: Path) -> None:
    (row,) = read_parts(list_corpus("grid", grid_root)[0].row(), 64, "aligned")
    assert row["reason"] == "" and row["length"] == row["total"] == 75
    wave = np.frombuffer(row["waveform"], np.float32)
    assert len(wave) == 48_000 and 0.005 < wave.std() < 0.5
    frames = np.frombuffer(row["frames"], np.uint8).reshape(75, 64, 64, 3)
    assert frames.std() > 20
    points = np.frombuffer(row["landmarks"], np.float32).reshape(75, 68, 2)
    assert points[:, 36:42].mean((0, 1)) == pytest.approx(LEFT_EYE, abs=0.03)
    assert points[:, 42:48].mean((0, 1)) == pytest.approx(RIGHT_EYE, abs=0.03)
