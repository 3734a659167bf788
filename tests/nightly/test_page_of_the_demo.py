"""The page as the demo's last line opens it: somebody speaks, and a run is watched that goes on beside it."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import until
from tests.slow.conftest import browser

__all__ = ["browser"]

FEDTALK = [sys.executable, "-m", "fedtalk_ray.commands.cli"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The demo's folder, and the command in its last line."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    done = subprocess.run(
        [*FEDTALK, "demo", "--out", str(out)], check=True, timeout=1700, capture_output=True, text=True
    )
    print("\n".join(line for line in done.stdout.splitlines() if " before, " in line or line.startswith("done")))
    return out, shlex.split(done.stdout.splitlines()[-1].partition(":")[2])


@pytest.fixture
def page(demo: tuple[Path, list[str]], browser: Any) -> Iterator[Any]:
    with subprocess.Popen([*demo[1], "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
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
