"""A part of a video written down in a line: what is read is what was written, and what is gone is none."""

import json
import math
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtalk_ray.media import excerpt as excerpt_module
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.excerpt import Excerpt, Footage, excerpt_of
from fedtalk_ray.media.video import SAMPLE_RATE, WHOLE_PICTURE, frames_of
from tests.unit.media.plain_frames import grey


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    begin=st.floats(0, 1e4),
    end=st.one_of(st.just(math.inf), st.floats(0, 1e4)),
    crop=st.one_of(st.just(WHOLE_PICTURE), st.tuples(*[st.integers(0, 4000)] * 4)),
)
def test_what_is_read_is_what_was_written(tmp_path: Path, begin: float, end: float, crop) -> None:
    file = tmp_path / 'a "b" é.mp4'
    file.touch()
    excerpt = Excerpt(str(file), begin, end, crop)
    assert excerpt_of(excerpt.text()) == excerpt
    assert "\n" not in excerpt.text() and "Infinity" not in excerpt.text()


def test_a_path_means_the_same_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").touch()
    monkeypatch.chdir(tmp_path)
    text = Excerpt("a.mp4").text()
    monkeypatch.chdir("/")
    assert json.loads(text) == {"path": str(tmp_path / "a.mp4")}
    assert excerpt_of(text) == Excerpt(str(tmp_path / "a.mp4"))


def test_a_drawn_clip_and_a_file_that_is_gone_are_none(tmp_path: Path) -> None:
    assert excerpt_of("") is None and excerpt_of(Excerpt(str(tmp_path / "gone.mp4")).text()) is None


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", "{}", '{"path": 3}', '{"path": "/", "speed": 2}', '{"path": "/", "crop": [1]}']
)
def test_a_text_that_says_nothing_is_none(text: str) -> None:
    assert excerpt_of(text) is None


def test_a_file_that_may_not_be_looked_at_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    assert excerpt_of(Excerpt(str(tmp_path / "a.mp4")).text()) is None


def test_its_footage_is_that_part_of_the_file(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(0, 200, 5, dtype=np.uint8), 32 * 48 * 3).reshape(40, 32, 48, 3)
    frames[:, :16] //= 2
    write_video(tmp_path / "a.mp4", frames, None)
    excerpt = Excerpt(str(tmp_path / "a.mp4"), 0.4, 1.2, (16, 16, 32, 16))
    found = list(excerpt.footage())
    assert len(found) == 20 and all(frame.shape == (16, 32, 3) for frame in found)
    assert [frame.mean() for frame in found] == pytest.approx([5 * (10 + k) for k in range(20)], abs=3)
    again = list(excerpt.footage().part(4, 7))
    assert all((one == other).all() for one, other in zip(again, found[4:7], strict=True)) and len(again) == 3


def test_footage_is_the_same_every_time_and_kept_only_while_it_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, grey(list(range(40, 60))), np.zeros(SAMPLE_RATE, np.float32))
    once = list(frames_of(path))
    footage = Footage(path)
    opened = []
    real = av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
    for _ in range(3):
        assert all(np.array_equal(one, other) for one, other in zip(footage, once, strict=True))
    assert len(opened) == 1, "kept after the first time"
    monkeypatch.setattr(excerpt_module, "KEPT_BYTES", 2 * once[0].nbytes)
    footage = Footage(path)
    for _ in range(2):
        assert all(np.array_equal(one, other) for one, other in zip(footage, once, strict=True))
    assert len(opened) == 3, "decoded anew"
