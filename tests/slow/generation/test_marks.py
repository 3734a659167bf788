"""`fedtalk generate` marks what it writes, and `fedtalk verify` finds it out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from fedtalk_ray.commands.cli import main
from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.media.video import SAMPLE_RATE, read_video
from fedtalk_ray.model.embedded import EMBEDDED

Call = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs `fedtalk` and returns its status, and its lines on stdout and stderr."""

    def call(*arguments: object) -> tuple[int, list[str], list[str]]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out.splitlines(), printed.err.splitlines()

    return call


@pytest.fixture
def given(tmp_path: Path) -> list[object]:
    """What a drawn person says, as options of `generate`."""
    clip = render_clip(3, 0, size=144, seconds=0.8).video
    Image.fromarray(clip.frames[0]).save(tmp_path / "face.png")
    wavfile.write(tmp_path / "voice.wav", SAMPLE_RATE, (clip.audio * 32767).astype(np.int16))
    return ["--run", EMBEDDED, "--reference", tmp_path / "face.png", "--audio", tmp_path / "voice.wav"]


def test_what_is_generated_says_so(command: Call, given: list[object], tmp_path: Path) -> None:
    file = tmp_path / "talk.mp4"
    assert command("generate", *given, "--out", file)[0] == 0
    status, lines, wrong = command("verify", file)
    assert (status, wrong) == (0, [])
    assert lines[0].startswith("credentials: unchanged since they were signed; made by a model; ")
    assert lines[1].startswith("invisible mark: ")


def test_no_mark_says_what_it_leaves_out(command: Call, given: list[object], tmp_path: Path) -> None:
    file = tmp_path / "talk.mp4"
    status, lines, _ = command("generate", *given, "--out", file, "--no-mark")
    assert status == 0
    assert lines[-1].startswith("not marked: no content credentials and no invisible mark")
    status, lines, wrong = command("verify", file)
    assert status == 1
    assert lines == ["credentials: none", "invisible mark: none found"]
    assert len(wrong) == 1 and wrong[0].startswith(f"fedtalk: {file}: neither credentials nor the mark")


def test_the_same_seed_makes_the_same_marked_pictures(command: Call, given: list[object], tmp_path: Path) -> None:
    videos = []
    for name in ("a.mp4", "b.mp4"):
        assert command("generate", *given, "--out", tmp_path / name)[0] == 0
        videos.append(read_video(tmp_path / name).frames)
    assert np.array_equal(*videos)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--certificate", "none.pem", "--key", "none.pem"], "none.pem: No such file or directory"),
        (["--certificate", "none.pem"], "--key is missing: a certificate and its key are given together"),
        (["--no-mark", "--key", "none.pem"], "--no-mark and --certificate or --key exclude each other"),
    ],
)
def test_a_wrong_certificate_is_told_before_anything_is_made(
    command: Call, given: list[object], tmp_path: Path, options: list[str], says: str
) -> None:
    status, lines, wrong = command("generate", *given, "--out", tmp_path / "talk.mp4", *options)
    assert status == 1 and lines == []
    assert len(wrong) == 1 and wrong[0].startswith(f"fedtalk: {says}")
    assert not (tmp_path / "talk.mp4").exists()


def test_verify_tells_what_is_no_video(command: Call, tmp_path: Path) -> None:
    status, _, wrong = command("verify", tmp_path / "none.mp4")
    assert status == 1 and wrong == [f"fedtalk: {tmp_path / 'none.mp4'}: does not exist"]
