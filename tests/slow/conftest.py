"""The fixtures of `tests/unit`, for files that take longer than all of its, and a browser."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.conftest import (
    build_run,
    exported,
    make_config,
    make_denoiser,
    make_pipeline,
    make_run,
    make_shards,
    make_windows,
    measured_clips,
    no_waiting_for_the_disk,
    plain_record,
    report_shards,
    secure_record,
    wake_zeros,
)

__all__ = [
    "build_run",
    "exported",
    "make_config",
    "make_denoiser",
    "make_pipeline",
    "make_run",
    "make_shards",
    "make_windows",
    "measured_clips",
    "no_waiting_for_the_disk",
    "plain_record",
    "report_shards",
    "secure_record",
    "wake_zeros",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window. Where there is none the test is skipped, unless FEDTALK_NEEDS_BROWSER=1."""
    program = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        if os.environ.get("FEDTALK_NEEDS_BROWSER") == "1":
            pytest.fail("FEDTALK_NEEDS_BROWSER is 1, and there is no playwright or no chromium")
        pytest.skip("no playwright, or no chromium on PATH")
    with sync_playwright() as playwright:
        # A container's root may not open the sandbox; the page is our own.
        # Its microphone beeps once a second.
        media = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", *media])
        yield browser
        browser.close()
