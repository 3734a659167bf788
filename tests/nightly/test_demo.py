"""The demo as a newcomer runs it: what it promises is there, lips follow the sound, and its last line opens a page on
which somebody speaks, and a run is watched that goes on beside it."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedtalk_ray.media.video import read_video
from tests.served import until

FEDTALK = [sys.executable, "-m", "fedtalk_ray.commands.cli"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The demo's folder, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    done = subprocess.run(
        [*FEDTALK, "demo", "--out", str(out)], check=True, timeout=1700, capture_output=True, text=True
    )
    return out, done.stdout.splitlines()


@pytest.fixture
def page(demo: tuple[Path, list[str]], browser: Any) -> Iterator[Any]:
    command = shlex.split(demo[1][-1].partition(":")[2])
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = re.match(r"(http://127\.0\.0\.1:[0-9]+)/ in a browser", process.stdout.readline())
        assert told
        context = browser.new_context()
        opened = context.new_page()
        opened.set_default_timeout(120_000)
        opened.goto(told[1])
        yield opened
        context.close()
        process.terminate()


@pytest.mark.timeout(2400)
def test_the_demo_makes_a_face_whose_lips_follow_its_sound(demo: tuple[Path, list[str]]) -> None:
    out, told = demo
    for name in ("id0000", "id0008"):
        video = read_video(out / f"{name}.mp4")
        assert video.frames.shape == (75, 256, 256, 3)
        assert abs(len(video.audio) / 16_000 - 3.0) < 0.08
    groups = json.loads((out / "run" / "metrics.json").read_text())["groups"]
    right, wrong = (groups["unseen"][row]["lip_correlation_spoken"] for row in ("generated", "other sound"))
    assert right > 0.5 and right > wrong + 0.4
    assert groups["unseen"]["generated"]["psnr"] > 24
    assert (out / "before-and-after.png").is_file()
    gains = [line for line in told if " before, " in line]
    assert len(gains) == 2 and not any("no gain" in line for line in gains), gains


@pytest.mark.timeout(2400)
def test_the_demos_last_line_opens_a_page_on_which_a_run_is_watched(demo: tuple[Path, list[str]], page: Any) -> None:
    page.get_by_text("Drawn person 1").click()
    page.locator("#said").get_by_text("0:03").wait_for()
    page.get_by_role("button", name="Speak", exact=True).click()
    page.get_by_text("Done.").wait_for()
    page.get_by_role("tab", name="Federation").click()
    rounds = page.get_by_text(re.compile(r"Round \d+ of \d+"))
    rounds.wait_for()
    first, whole = map(int, re.findall(r"\d+", rounds.inner_text()))
    assert first == whole
    run = demo[0] / "run"
    command = [*FEDTALK, "train", str(run / "config.yaml"), f"run={run.with_name('again')}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as training:
        try:
            until(lambda: (run.with_name("again") / "history.jsonl").is_file(), 120)
            page.get_by_label("Run in").click()
            page.get_by_role("option", name="again").click()
            seen: set[str] = set()

            def four_rounds() -> bool:
                seen.add(rounds.inner_text())
                return len({text for text in seen if re.match(r"Round [1-9]\b", text)}) >= 4

            until(four_rounds, 180)
            assert training.poll() is None
        finally:
            training.terminate()
