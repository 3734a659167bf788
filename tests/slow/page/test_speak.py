"""What the tabs do without a browser: read a text aloud, keep examples, find runs."""

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import pytest
from gradio.route_utils import delete_files_created_by_app

from fedtalk_ray.errors import UserError
from fedtalk_ray.page import speak
from fedtalk_ray.page.examples import drawn_people
from fedtalk_ray.page.turns import begin_video
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service.making import Wish


def test_without_a_text_or_a_program_one_line_says_what_to_give(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"^give a sound"):
        speak.read_aloud("  ", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=r"install espeak-ng, or give a sound$"):
        speak.read_aloud("hello", tmp_path)


class Nobody:
    """A service of no people, of which nothing is asked."""

    queue = None

    def identities(self) -> list[str]:
        return []


def test_of_what_is_old_the_drawn_peoples_sounds_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    drawn = drawn_people(RunFolder(tmp_path / "run"), 144, tmp_path)
    with gr.Blocks(delete_cache=(60, 3600)) as page:
        speak.speak_tab(Nobody(), drawn, 60.0)  # type: ignore[arg-type]
    delete_files_created_by_app(page, 0)
    kept = {file.read_bytes() for file in (tmp_path / "cache").rglob("*.wav")}
    assert kept == {each.sound.read_bytes() for each in drawn}


def test_what_is_not_kept_any_more_is_asked_for_again(tmp_path: Path) -> None:
    given = Wish(), tmp_path / "face.png", tmp_path / "said.wav", 60.0
    # Playwright runs a loop in the thread of the tests.
    with (
        ThreadPoolExecutor(1) as aside,
        pytest.raises(UserError, match=r"^what you gave is not kept any more; give it again$"),
    ):
        aside.submit(asyncio.run, begin_video(Nobody(), *given)).result()  # type: ignore[arg-type]
