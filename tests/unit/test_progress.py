"""A bar yields every item, and a plain line tells every tenth."""

import pytest

from fedtalk_ray.progress import progress


def test_progress_yields_all_items_and_tells_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(20), 20, "work")) == list(range(20))
    assert capsys.readouterr().err.splitlines()[-1] == "work: 20 of 20"
