"""The report in a real browser: its videos play together and are heard, its plots are shown, it asks nobody for
anything, it fits a phone and can be read in the dark."""

from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from fedtalk_ray.report.page import write_report

PRIVATE = {"mechanism": "skellam", "epsilon": 8.0, "noise_multiplier": 2.0, "clip_norm": 1.0}
SECONDS = 1.2

Open = Callable[..., Any]

# Colours as the browser computes them, over what lies behind them.
CONTRASTS = """selector => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const light = text => {
    const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = parts(text).slice(0, 3).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (parts(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll(selector)].map(element => {
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    return (a + .05) / (b + .05);
  });
}"""


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory, build_run: Callable, plain_record: Callable, secure_record: Callable
) -> dict[str, Path]:
    """The reports of a plain run with a client that is shown, and of a secure run with noise."""
    folder = tmp_path_factory.mktemp("pages")
    rounds = (1, 2, 3)
    plain = build_run(folder / "plain", [plain_record(n) for n in rounds], measured=True, aggregation="plain")
    secure = build_run(folder / "secure", [secure_record(n) for n in rounds], measured=True, privacy=PRIVATE)
    return {"plain": write_report(plain, client="anna"), "secure": write_report(secure)}


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a page from disk. At the end nothing may have complained, and nothing have been asked for elsewhere."""
    complaints: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_it(path: Path, width: int = 1200, scheme: str = "light") -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert complaints == []
    assert asked and all(url.startswith(("file:", "data:")) for url in asked)
    assert sum(url.startswith("file:") for url in asked) == len(contexts), "the page itself and no other file"


def wait_until(page: Any, expression: str, seconds: float = 60) -> None:
    """Playwright's own waiting evaluates text inside the page, which the page's policy forbids."""
    end = monotonic() + seconds
    while not page.evaluate(expression):
        assert monotonic() < end, f"not within {seconds:g} s: {expression}"
        page.wait_for_timeout(50)


def test_all_videos_load_and_have_the_clips_length(pages: dict[str, Path], open_page: Open) -> None:
    for name, count in (("plain", 7), ("secure", 3)):
        page = open_page(pages[name])
        wait_until(page, "[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
        found = page.evaluate(
            "[...document.querySelectorAll('video')].map(v => [v.duration, v.videoWidth, v.videoHeight])"
        )
        assert len(found) == count
        for seconds, width, height in found:
            assert seconds == pytest.approx(SECONDS, abs=0.1) and (width, height) == (128, 128)


@pytest.mark.alone
def test_one_button_plays_a_row_in_step_and_one_is_heard(pages: dict[str, Path], open_page: Open) -> None:
    page = open_page(pages["plain"])
    row = page.locator(".row").nth(1)
    page.evaluate(
        """() => {
          window.seen = [];
          const videos = [...document.querySelectorAll(".row")[1].querySelectorAll("video")];
          const look = () => {
            if (videos.every(video => !video.paused && !video.seeking)) seen.push(videos.map(v => v.currentTime));
            requestAnimationFrame(look);
          };
          look();
        }"""
    )
    wait_until(page, "[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
    row.get_by_role("button", name="Play all").click()
    wait_until(page, "seen.length && Math.min(...seen.at(-1)) > 0.5")
    assert page.evaluate("[...document.querySelectorAll('video')].filter(video => !video.muted).length") == 1
    assert row.locator("video").first.evaluate("video => !video.muted && video.webkitAudioDecodedByteCount > 0")
    assert page.evaluate("[...document.querySelector('.row').querySelectorAll('video')].every(video => video.paused)")
    wait_until(page, "[...document.querySelectorAll('.row')[1].querySelectorAll('video')].every(v => v.ended)")
    row.get_by_role("button", name="Play all").wait_for()
    apart = page.evaluate("seen.map(times => Math.max(...times) - Math.min(...times))")
    # Frames of 40 ms; a busy machine may show one late now and then.
    assert len(apart) > 5 and sorted(apart)[len(apart) // 2] < 0.08, apart
    # Once more from the beginning, and stopped on the way.
    row.get_by_role("button", name="Play all").click()
    row.get_by_role("button", name="Pause all").click()
    wait_until(page, "[...document.querySelectorAll('video')].every(video => video.paused)")


def test_every_video_has_its_sound(pages: dict[str, Path], open_page: Open) -> None:
    """Each is played alone, as by its own controls: then it is the one that is heard, and the only one that plays."""
    page = open_page(pages["plain"])
    for index in range(7):
        video = page.locator("video").nth(index)
        video.evaluate("video => video.play()")
        wait_until(page, f"document.querySelectorAll('video')[{index}].webkitAudioDecodedByteCount > 0")
        playing = "[...document.querySelectorAll('video')].map((v, i) => (!v.paused && !v.ended) || !v.muted ? i : -1)"
        assert set(page.evaluate(playing)) <= {-1, index}
        assert video.evaluate("video => !video.muted")


@pytest.mark.parametrize("name", ["plain", "secure"])
def test_every_plot_is_shown(pages: dict[str, Path], open_page: Open, name: str) -> None:
    page = open_page(pages[name])
    plots = page.evaluate(
        "[...document.querySelectorAll('.plot img')].map(i => [i.alt, i.naturalWidth, i.getBoundingClientRect().width])"
    )
    assert len(plots) == {"plain": 8, "secure": 7}[name], [plot[0] for plot in plots]
    assert all(label and drawn > 500 and shown > 200 for label, drawn, shown in plots), plots
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == page.evaluate(
        "document.querySelectorAll('[id]').length"
    )


@pytest.mark.parametrize("name", ["plain", "secure"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_a_phone_by_day_and_by_night(
    pages: dict[str, Path], open_page: Open, name: str, scheme: str
) -> None:
    page = open_page(pages[name], width=360, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator(".scroll").first.evaluate("box => box.scrollWidth > box.clientWidth"), "wide tables scroll"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(ground) < 60 if scheme == "dark" else min(ground) > 200
    text = page.evaluate(CONTRASTS, "p, dt, dd, h1, h2, h3, li, th, td, pre, button")
    assert len(text) > 50 and min(text) >= 4.5


def test_the_configuration_is_copied_by_a_button(pages: dict[str, Path], open_page: Open) -> None:
    page = open_page(pages["plain"])
    page.locator("summary").click()
    page.get_by_role("button", name="Copy").click()
    page.locator("#copied").filter(has_text="cop").wait_for()
    yaml = (pages["plain"].parent / "config.yaml").read_text()
    assert page.evaluate("String(getSelection())").strip() == yaml.strip()


def test_the_page_is_small(pages: dict[str, Path]) -> None:
    assert all(page.stat().st_size < 10_000_000 for page in pages.values())
