"""The report in a real browser: its videos play together and are heard, its plots are shown, it asks for nothing."""

from pathlib import Path
from time import monotonic
from typing import Any

import pytest

SECONDS = 1.2


def wait_until(page: Any, expression: str, seconds: float = 60) -> None:
    """Playwright's own waiting evaluates text inside the page, which the page's policy forbids."""
    end = monotonic() + seconds
    while not page.evaluate(expression):
        assert monotonic() < end, f"not within {seconds:g} s: {expression}"
        page.wait_for_timeout(50)


def test_every_video_has_its_sound_and_one_button_plays_a_row(pages: dict[str, Path], browser: Any) -> None:
    """Each is played alone, as by its own controls: then it is the one that is heard, and the only one that plays."""
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
    page.goto(pages["plain"].as_uri())
    wait_until(page, "[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
    plots = page.evaluate("[...document.querySelectorAll('.plot img')].map(i => [i.alt, i.naturalWidth])")
    assert len(plots) == 8 and all(label and drawn > 500 for label, drawn in plots), plots
    found = page.evaluate("[...document.querySelectorAll('video')].map(v => [v.duration, v.videoWidth, v.videoHeight])")
    assert len(found) == 7
    for seconds, width, height in found:
        assert seconds == pytest.approx(SECONDS, abs=0.1) and (width, height) == (128, 128)
    for index in range(7):
        video = page.locator("video").nth(index)
        video.evaluate("video => video.play()")
        wait_until(page, f"document.querySelectorAll('video')[{index}].webkitAudioDecodedByteCount > 0")
        playing = "[...document.querySelectorAll('video')].map((v, i) => (!v.paused && !v.ended) || !v.muted ? i : -1)"
        assert set(page.evaluate(playing)) <= {-1, index}
        assert video.evaluate("video => !video.muted")
    wait_until(page, "[...document.querySelectorAll('video')].every(video => video.paused)")
    row = page.locator(".row").nth(1)
    row.locator("video").last.evaluate("video => { video.currentTime = 0.6; }")
    row.get_by_role("button", name="Play all").click()
    wait_until(page, "[...document.querySelectorAll('.row')[1].querySelectorAll('video')].every(v => v.ended)")
    row.get_by_role("button", name="Play all").wait_for()
    page.close()
    assert complaints == []
