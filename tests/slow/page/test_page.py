"""The page in a real browser, served by its own command: who speaks, is personalised and deleted; a run is watched.

Nothing may complain, nothing be asked for elsewhere.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedtalk_ray.config import save_config
from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.marking.verify import verify
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.video import read_video
from fedtalk_ray.page.speak import SHARED, WHOLE
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import History

Open = Callable[..., Any]

HARMLESS = ("Method not implemented", "Vega-Lite")
"""What Gradio's own scripts say on every page."""


@pytest.fixture(scope="module")
def run(exported: Path, report_shards: Path, make_config: Callable, plain_record: Callable, tmp_path_factory) -> Path:
    """A run of three rounds, of which one is recorded yet."""
    folder = tmp_path_factory.mktemp("paged") / "run"
    shutil.copytree(exported, folder)
    shutil.copytree(RunFolder(exported).clients_folder, RunFolder(folder).clients_folder)
    settings = {"run": str(folder), "shards": str(report_shards), "rounds": 3, "aggregation": "plain"}
    save_config(make_config(**settings), RunFolder(folder).config_file)
    History(RunFolder(folder).history_file, 0).after_round(plain_record(1))
    return folder


@pytest.fixture(scope="module")
def app(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The page's address, and the folder in which it keeps what passes through."""
    temporary = tmp_path_factory.mktemp("passing")
    command = [sys.executable, "-m", "fedtalk_ray.commands.cli", "app", "--run", str(run), "--port", "0"]
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        told = re.match(r"(http://127\.0\.0\.1:[0-9]+)/ in a browser", process.stdout.readline())
        assert told
        yield told[1], temporary
        process.terminate()
        assert process.wait(30) == 0
    assert not list(temporary.glob("fedtalk-app-*"))


@pytest.fixture
def page(browser: Any, app: tuple[str, Path]) -> Iterator[Open]:
    """Opens the page; at the end nobody may have complained or asked elsewhere."""
    complaints: list[str] = []
    contexts = []

    def open_it(width: int = 1280, scheme: str = "light") -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        opened = contexts[-1].new_page()
        opened.set_default_timeout(60_000)
        opened.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("request", lambda request: asked_elsewhere(request.url))
        opened.goto(app[0])
        opened.get_by_role("tab", name="Speak").wait_for()
        return opened

    def asked_elsewhere(url: str) -> None:
        if not url.startswith((app[0], "data:", "blob:")):
            complaints.append(f"asked for {url}")

    yield open_it
    for context in contexts:
        context.close()
    assert [each for each in complaints if not any(known in each for known in HARMLESS)] == []


def finds(opened: Any, expression: str) -> None:
    opened.wait_for_function(expression, timeout=60_000)


PLAYS = "(video => video && video.readyState >= 2 && video.videoWidth > 0)(document.querySelector('{}'))"


def test_a_drawn_person_speaks_and_the_page_says_what_the_video_carries(page: Open, tmp_path: Path) -> None:
    opened = page()
    opened.get_by_role("button", name="Speak", exact=True).click()
    opened.get_by_text("give a picture of a face first").wait_for()
    opened.get_by_text("Drawn person 2").click()
    opened.locator("#said").get_by_text("0:03").wait_for()
    opened.get_by_role("button", name="Speak", exact=True).click()
    finds(opened, PLAYS.format("#live video"))
    opened.get_by_text("Done.").wait_for()
    finds(opened, PLAYS.format("#made video"))
    assert "unchanged since they were signed" in opened.locator("#carried").inner_text()
    video = opened.request.get(opened.locator("#made video").get_attribute("src")).body()
    (tmp_path / "made.mp4").write_bytes(video)
    assert verify(tmp_path / "made.mp4").problem() == "" and len(read_video(tmp_path / "made.mp4").frames) == 75


def test_somebody_is_personalised_and_deleted_to_the_last_byte(
    page: Open, run: Path, app: tuple[str, Path], tmp_path: Path
) -> None:
    name, clips = "anna-2", []
    for number in range(3):
        drawn = render_clip(40, number, size=128, seconds=1.2).video
        write_video(tmp_path / f"{number}.mp4", drawn.frames, drawn.audio)
        clips.append((tmp_path / f"{number}.mp4").read_bytes())
    earlier = set(app[1].rglob("*.mp4"))
    opened = page(390, "dark")
    opened.get_by_role("tab", name="Personalise").click()
    opened.get_by_label("Name of your folder").fill(name)
    look, train = (opened.get_by_role("button", name=each, exact=True) for each in ("Look at my clips", "Personalise"))
    opened.get_by_label("These clips show me").check()
    opened.locator("#clips input[type=file]").set_input_files([tmp_path / f"{number}.mp4" for number in range(3)])
    finds(opened, "document.querySelectorAll('#clips a[download]').length === 3")
    look.click()
    opened.get_by_text("3 of 3 clips can be used.").wait_for()
    folder = RunFolder(run).client(name)
    assert "These clips show me" in folder.consent.read_text() and folder.path.stat().st_mode & 0o077 == 0
    opened.get_by_label("Steps of training").first.fill("10")
    train.click()
    opened.get_by_text("Done: held-out loss").wait_for(timeout=120_000)
    finds(opened, "[...document.querySelectorAll('#compared video')].filter(v => v.readyState >= 2).length === 2")
    kept = [path for path in RunFolder(run).clients_folder.rglob("*") if path.is_file()]
    assert sum(path.read_bytes() in clips for path in kept) == 3
    opened.get_by_text("Deletion").click()
    delete = opened.get_by_role("button", name="Delete everything of me")
    opened.get_by_label("Your folder's name once more").fill(name)
    delete.click()
    opened.get_by_text(f"Everything of {name} is deleted").wait_for()
    left = [path for place in (RunFolder(run).clients_folder, app[1]) for path in place.rglob("*")]
    assert not any(name in str(path) for path in left)
    assert not {path for path in left if path.suffix == ".mp4"} - earlier
    assert not any(clip[200:] in path.read_bytes() for path in left if path.is_file() for clip in clips)
    assert RunFolder(run).clients() == ["anna"]


def test_paths_and_addresses_are_no_uploads(page: Open, app: tuple[str, Path], run: Path) -> None:
    """Gradio takes a path in an upload's place: what is mounted, not launched, it would read from anywhere."""
    asked = page().request
    told, names = asked.get(f"{app[0]}/config").json(), ["The face is in", "Picture of one face"]
    labels = {each["id"]: each["props"].get("label") for each in told["components"]}
    number = next(each["id"] for each in told["dependencies"] if [labels[one] for one in each["inputs"]][:2] == names)
    for place in ("/etc/passwd", str(run / "config.yaml"), "http://127.0.0.1:9/x.png"):
        given = ["a picture", {"path": place, "meta": {"_type": "gradio.FileData"}}]
        given += [None, None, "", SHARED, False, WHOLE, False, 0, 0, 2, 1]
        body = {"fn_index": number, "data": given, "session_hash": "past", "event_data": None}
        assert asked.post(f"{app[0]}/gradio_api/queue/join", data=body).ok
        answer = asked.get(f"{app[0]}/gradio_api/queue/data?session_hash=past").text()
        assert '"success":false' in answer and "process_completed" in answer, place
        assert asked.get(f"{app[0]}/gradio_api/file={place}").status in (403, 404)
    assert not {path.name for path in app[1].rglob("*")} & {"passwd", "config.yaml", "x.png"}


def test_a_run_is_watched_while_it_goes_on(page: Open, run: Path, plain_record: Callable) -> None:
    history = History(RunFolder(run).history_file, 1)
    opened = page(390)
    opened.get_by_role("tab", name="Federation").click()
    opened.get_by_text("Round 1 of 3").wait_for()
    history.after_round(plain_record(2))
    opened.get_by_text("Round 2 of 3").wait_for(timeout=10_000)
    finds(opened, "[...document.querySelectorAll('#run img')].length > 3")
    assert opened.evaluate("[...document.querySelectorAll('#run img')].every(image => image.alt.length > 20)")
    opened.get_by_text("Plan the noise of another run").click()
    opened.get_by_role("button", name="Work out the noise").click()
    finds(opened, "document.querySelector('textarea[disabled]')?.value.includes('noise multiplier 1.312')")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
