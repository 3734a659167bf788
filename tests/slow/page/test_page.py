"""The page in a real browser, served by its own command: who speaks, is personalised and deleted; a run is watched.

At both widths, light and dark, with the keyboard alone; nothing may complain, nothing be asked for elsewhere, and axe
may find nothing serious.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from scipy.io import wavfile

from fedtalk_ray.commands.cli import main
from fedtalk_ray.config import save_config
from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.marking.verify import verify
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.video import read_video
from fedtalk_ray.page.speak import SHARED, WHOLE
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import History
from tests.network_changes import steady_network
from tests.served import until

Open = Callable[..., Any]

HARMLESS = ("Method not implemented", "Vega-Lite")
"""What Gradio's own scripts say on every page."""


@pytest.fixture(scope="module")
def run(
    exported: Path,
    report_shards: Path,
    make_config: Callable,
    plain_record: Callable,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
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
    harmless = list(HARMLESS)
    contexts = []

    def open_it(width: int = 1280, scheme: str = "light", expected: tuple[str, ...] = ()) -> Any:
        harmless.extend(expected)
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

    with steady_network():
        yield open_it
        for context in contexts:
            context.close()
    assert [each for each in complaints if not any(known in each for known in harmless)] == []


def nothing_serious(opened: Any) -> None:
    found = Axe().run(opened).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []


def finds(opened: Any, expression: str) -> None:
    opened.wait_for_function(expression, timeout=60_000)


EVERYWHERE = [(1280, "light"), (390, "dark"), (390, "light"), (1280, "dark")]


def looks(usual: int) -> pytest.MarkDecorator:
    """Widths and schemes: all four with FEDTALK_EVERYWHERE=1, as in `make nightly`, else the usual one."""
    some = EVERYWHERE if os.environ.get("FEDTALK_EVERYWHERE") == "1" else [EVERYWHERE[usual]]
    return pytest.mark.parametrize(("width", "scheme"), some)


PLAYS = "(video => video && video.readyState >= 2 && video.videoWidth > 0)(document.querySelector('{}'))"


@looks(0)
def test_a_drawn_person_speaks_and_the_page_says_what_the_video_carries(
    page: Open, width: int, scheme: str, tmp_path: Path
) -> None:
    opened = page(width, scheme)
    nothing_serious(opened)
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
    # It goes once it has played: the whole video is there.
    finds(opened, "!document.querySelector('#live video')")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    nothing_serious(opened)


@looks(1)
def test_a_face_speaks_while_somebody_does(
    page: Open, app: tuple[str, Path], width: int, scheme: str, tmp_path: Path
) -> None:
    """By the browser's own microphone, which is off again whatever ends it; the video that is kept carries the mark."""
    opened = page(width, scheme)
    before = set(app[1].glob("fedtalk-app-*/jobs/*"))
    opened.get_by_role("tab", name="Live").click()
    inside = opened.frame_locator("#speak-live iframe")
    inside.get_by_role("button", name="Start the microphone").wait_for()
    live = next(frame for frame in opened.frames if frame.url.endswith("/live"))
    live.evaluate("""() => {
      window.tracks = [];
      const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      navigator.mediaDevices.getUserMedia = async how => {
        const given = await open(how);
        window.tracks.push(...given.getTracks());
        return given;
      };
    }""")
    off = "window.tracks.length === {} && window.tracks.every(track => track.readyState === 'ended')"
    inside.get_by_label("a picture of mine").check()
    inside.get_by_role("button", name="Start the microphone").click()
    inside.get_by_text("choose a picture first").wait_for()
    inside.get_by_label("Drawn person 3").check()
    inside.get_by_role("button", name="Start the microphone").click()
    inside.get_by_text(re.compile(r"The face is [0-9.]+ s behind you")).wait_for()
    live.wait_for_function("video.currentTime > 2 && video.videoWidth > 0")
    assert live.evaluate("video.muted") and live.evaluate("document.documentElement.scrollWidth <= innerWidth")
    nothing_serious(opened)
    expect(inside.get_by_role("status")).to_contain_text("On line.")
    inside.get_by_role("button", name="Stop").click()
    assert live.evaluate(off.format(1))
    inside.get_by_text("Ended.").wait_for()
    with opened.expect_download() as kept:
        inside.get_by_role("link", name="Keep this video").click()
    kept.value.save_as(tmp_path / "live.mp4")
    assert verify(tmp_path / "live.mp4").mark is not None
    assert 50 < len(read_video(tmp_path / "live.mp4").frames) < 500
    assert opened.request.get(f"{app[0]}/live/nobody.png").status == 404
    # Somebody goes to another tab, where nothing says that she is heard.
    inside.get_by_role("button", name="Start the microphone").click()
    inside.get_by_text("On line.").wait_for()
    opened.get_by_role("tab", name="Speak").click()
    live.wait_for_function(off.format(2))
    opened.get_by_role("tab", name="Live").click()
    live.evaluate("() => { AudioWorkletNode = class { constructor() { throw new Error('no sound here'); } }; }")
    inside.get_by_role("button", name="Start the microphone").click()
    inside.get_by_text("It could not be started").wait_for()
    assert live.evaluate(off.format(3))
    expect(inside.get_by_role("button", name="Start the microphone")).to_be_enabled()
    until(lambda: not set(app[1].glob("fedtalk-app-*/jobs/*")) - before)


def test_the_keyboard_alone_is_enough(page: Open) -> None:
    opened = page()

    def go_to(text: str) -> None:
        for _ in range(80):
            opened.keyboard.press("Tab")
            if opened.evaluate("document.activeElement.innerText")[:40].strip() == text:
                return
        raise AssertionError(f"no {text} within reach of Tab")

    go_to("Drawn person 1")
    opened.keyboard.press("Enter")
    opened.locator("#said").get_by_text("0:03").wait_for()
    go_to("Speak")
    opened.keyboard.press("Enter")
    finds(opened, PLAYS.format("#made video"))
    assert opened.locator("#told").inner_text().strip() == "Done."


@pytest.mark.parametrize("how", ["stop", "close"])
def test_who_stops_or_leaves_is_not_worked_for_any_more(
    page: Open, app: tuple[str, Path], how: str, tmp_path: Path
) -> None:
    """Fifty seconds at ten steps: half a minute of work and more, of which nothing is left soon after."""
    wavfile.write(tmp_path / "long.wav", 16_000, np.random.default_rng(0).normal(0, 2000, 800_000).astype(np.int16))
    # The player asks for a stream that is gone.
    opened = page(expected=("status of 404", "status of 410"))
    before = set(app[1].glob("fedtalk-app-*/jobs/*"))
    opened.get_by_text("Drawn person 1").click()
    opened.locator("#said").get_by_text("0:03").wait_for()
    opened.locator("#said").get_by_label("Clear").click()
    opened.locator("#said input[type=file]").set_input_files(tmp_path / "long.wav")
    opened.locator("#said").get_by_text("0:50").wait_for()
    opened.get_by_text("More").click()
    opened.get_by_label("Denoising steps").first.fill("10")
    opened.get_by_role("button", name="Speak", exact=True).click()
    opened.locator("#live video").wait_for(state="attached")
    assert set(app[1].glob("fedtalk-app-*/jobs/*")) - before
    if how == "stop":
        opened.get_by_role("button", name="Stop", exact=True).first.click()
        opened.get_by_text("Stopped.").wait_for()
    else:
        opened.close()
    until(lambda: not set(app[1].glob("fedtalk-app-*/jobs/*")) - before)


def test_who_is_deleted_while_she_is_trained_is_gone(page: Open, run: Path, tmp_path: Path) -> None:
    for number in range(3):
        drawn = render_clip(41, number, size=128, seconds=1.2).video
        write_video(tmp_path / f"{number}.mp4", drawn.frames, drawn.audio)
    opened = page()
    opened.get_by_role("tab", name="Personalise").click()
    opened.get_by_label("Name of your folder").fill("bea")
    opened.get_by_label("These clips show me").check()
    opened.locator("#clips input[type=file]").set_input_files([tmp_path / f"{number}.mp4" for number in range(3)])
    finds(opened, "document.querySelectorAll('#clips a[download]').length === 3")
    opened.get_by_label("Steps of training").first.fill("600")
    opened.get_by_role("button", name="Personalise", exact=True).click()
    opened.get_by_text("Training: step").wait_for()
    opened.get_by_text("Deletion").click()
    opened.get_by_label("Your folder's name once more").fill("bea")
    opened.get_by_role("button", name="Delete everything of me").click()
    # Both the training and the deletion say so, and either may be heard last; only the training frees the button.
    expect(opened.get_by_role("button", name="Personalise", exact=True)).to_be_enabled(timeout=60_000)
    opened.get_by_text(re.compile("bea was deleted meanwhile|Everything of bea is deleted")).wait_for()
    assert not RunFolder(run).client("bea").path.exists() and RunFolder(run).clients() == ["anna"]


@looks(1)
def test_somebody_is_personalised_as_by_the_command_and_deleted_to_the_last_byte(
    page: Open, run: Path, app: tuple[str, Path], width: int, scheme: str, tmp_path: Path
) -> None:
    name, clips = f"anna-{width}", []
    for number in range(3):
        drawn = render_clip(40, number, seed=width, size=128, seconds=2.0).video
        write_video(tmp_path / f"{number}.mp4", drawn.frames, drawn.audio)
        clips.append((tmp_path / f"{number}.mp4").read_bytes())
    before, earlier = tmp_path / "run", set(app[1].rglob("*.mp4"))
    shutil.copytree(run, before)
    opened = page(width, scheme)
    opened.get_by_role("tab", name="Personalise").click()
    opened.get_by_label("Name of your folder").fill(name)
    look, train = (opened.get_by_role("button", name=each, exact=True) for each in ("Look at my clips", "Personalise"))
    look.click()
    opened.get_by_text("say that you agree").wait_for()
    opened.get_by_label("These clips show me").check()
    opened.locator("#clips input[type=file]").set_input_files([tmp_path / f"{number}.mp4" for number in range(3)])
    finds(opened, "document.querySelectorAll('#clips a[download]').length === 3")
    look.click()
    opened.get_by_text("3 of 3 clips can be used.").wait_for()
    opened.get_by_text("all is well").nth(2).wait_for()
    folder = RunFolder(run).client(name)
    assert "These clips show me" in folder.consent.read_text() and folder.path.stat().st_mode & 0o077 == 0
    opened.get_by_label("Steps of training").first.fill("10")
    train.click()
    opened.get_by_text("Done: held-out loss").wait_for(timeout=120_000)
    finds(opened, "[...document.querySelectorAll('#compared video')].filter(v => v.readyState >= 2).length === 2")
    nothing_serious(opened)
    command = ["personalize", "--run", str(before), "--client", name, "--steps", "10"]
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*command, "--shards", str(folder.shards)])
    own, weights = RunFolder(before).client(name).newest_adapter, "adapter_model.safetensors"
    assert (own / weights).read_bytes() == (folder.newest_adapter / weights).read_bytes()
    kept = [path for path in RunFolder(run).clients_folder.rglob("*") if path.is_file()]
    assert sum(path.read_bytes() in clips for path in kept) == 3
    opened.get_by_text("Deletion").click()
    delete = opened.get_by_role("button", name="Delete everything of me")
    delete.click()
    opened.get_by_text("type the folder's name once more").wait_for()
    opened.get_by_label("Your folder's name once more").fill(name)
    delete.click()
    opened.get_by_text(f"Everything of {name} is deleted").wait_for()
    left = [path for place in (RunFolder(run).clients_folder, app[1]) for path in place.rglob("*")]
    assert not any(name in str(path) for path in left)
    assert not {path for path in left if path.suffix == ".mp4"} - earlier
    assert not any(clip[200:] in path.read_bytes() for path in left if path.is_file() for clip in clips)
    assert RunFolder(run).clients() == ["anna"]


def test_one_of_the_runs_own_clients_is_nobody_elses_to_change_or_delete(page: Open, run: Path) -> None:
    opened = page()
    opened.get_by_role("tab", name="Personalise").click()
    opened.get_by_label("Name of your folder").fill("anna")
    opened.get_by_text("Deletion").click()
    opened.get_by_label("Your folder's name once more").fill("anna")
    opened.get_by_role("button", name="Delete everything of me").click()
    opened.get_by_text("anna is a client of the run").wait_for()
    assert RunFolder(run).client("anna").newest_adapter.is_dir()


def call(opened: Any, address: str, names: list[str], given: list[Any]) -> str:
    """What one of the page's own functions answers, called past the page: whose inputs have these labels."""
    told = opened.request.get(f"{address}/config").json()
    labels = {each["id"]: each["props"].get("label") for each in told["components"]}
    number = next(
        each["id"] for each in told["dependencies"] if [labels[one] for one in each["inputs"]][: len(names)] == names
    )
    body = {"fn_index": number, "data": given, "session_hash": "past", "event_data": None}
    assert opened.request.post(f"{address}/gradio_api/queue/join", data=body).ok
    answer: str = opened.request.get(f"{address}/gradio_api/queue/data?session_hash=past").text()
    return answer


def test_paths_and_addresses_are_no_uploads(page: Open, app: tuple[str, Path], run: Path) -> None:
    """Gradio takes a path in an upload's place: what is mounted, not launched, it would read from anywhere."""
    opened = page()
    names = ["The face is in", "Picture of one face"]
    settings = [None, None, "", SHARED, False, WHOLE, False, 0, 0, 2, 1]
    for place in ("/etc/passwd", str(run / "config.yaml"), "http://127.0.0.1:9/x.png", "/dev/zero"):
        given = ["a picture", {"path": place, "meta": {"_type": "gradio.FileData"}}, *settings]
        answer = call(opened, app[0], names, given)
        assert '"success":false' in answer and "process_completed" in answer, place
        assert opened.request.get(f"{app[0]}/gradio_api/file={place}").status in (403, 404)
    left = {path.name for path in app[1].rglob("*")}
    assert not left & {"passwd", "config.yaml", "x.png", "zero"}


@looks(2)
def test_a_run_is_watched_while_it_goes_on(
    page: Open, run: Path, plain_record: Callable, width: int, scheme: str
) -> None:
    history = History(RunFolder(run).history_file, 1)
    opened = page(width, scheme)
    opened.get_by_role("tab", name="Federation").click()
    opened.get_by_text("Round 1 of 3").wait_for()
    history.after_round(plain_record(2))
    opened.get_by_text("Round 2 of 3").wait_for(timeout=10_000)
    finds(opened, "[...document.querySelectorAll('#run img')].length > 3")
    assert opened.evaluate("[...document.querySelectorAll('#run img')].every(image => image.alt.length > 20)")
    opened.get_by_text("Plan the noise of another run").click()
    opened.get_by_role("button", name="Work out the noise").click()
    finds(opened, "document.querySelector('textarea[disabled]')?.value.includes('noise multiplier 1.312')")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    nothing_serious(opened)
    opened.get_by_role("button", name="Write its report").click()
    opened.get_by_text("It lies in").wait_for()
    assert RunFolder(run).report.stat().st_size > 10_000
