"""A text that is read aloud, where a program that does is installed."""

import shutil
from pathlib import Path

import pytest

from fedtalk_ray.errors import UserError
from fedtalk_ray.media.video import read_audio
from fedtalk_ray.page import speak


@pytest.mark.skipif(speak.reader() is None, reason="no espeak-ng")
def test_a_text_is_read_aloud(tmp_path: Path) -> None:
    sound = read_audio(speak.read_aloud("Bin blue at F two now. --version", tmp_path))
    assert 1.5 * 16_000 < len(sound) < 8 * 16_000 and abs(sound).max() > 0.1


def test_without_a_text_or_a_program_one_line_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"^give a sound"):
        speak.read_aloud("  ", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=r"install espeak-ng, or give a sound$"):
        speak.read_aloud("hello", tmp_path)
