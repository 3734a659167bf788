"""A part of a video written down in a line: what is read is what was written, and what is gone is none."""

import math
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.excerpt import Excerpt, excerpt_of
from fedtalk_ray.media.video import WHOLE_PICTURE


@pytest.mark.parametrize(("begin", "end", "crop"), [(0.0, math.inf, WHOLE_PICTURE), (0.1, 7.3, (1, 2, 3, 4))])
def test_what_is_read_is_what_was_written(tmp_path: Path, begin: float, end: float, crop) -> None:
    file = tmp_path / 'a "b" é.mp4'
    file.touch()
    excerpt = Excerpt(str(file), begin, end, crop)
    assert excerpt_of(excerpt.text()) == excerpt
    assert "\n" not in excerpt.text() and "Infinity" not in excerpt.text()


def test_a_text_that_says_nothing_and_a_file_that_is_gone_are_none(tmp_path: Path) -> None:
    gone = Excerpt(str(tmp_path / "gone.mp4")).text()
    for text in ("", gone, "{", "[]", "{}", '{"path": 3}', '{"path": "/", "speed": 2}', '{"path": "/", "crop": [1]}'):
        assert excerpt_of(text) is None


def test_its_footage_is_that_part_of_the_file(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(0, 200, 5, dtype=np.uint8), 32 * 48 * 3).reshape(40, 32, 48, 3)
    frames[:, :16] //= 2
    write_video(tmp_path / "a.mp4", frames, None)
    excerpt = Excerpt(str(tmp_path / "a.mp4"), 0.4, 1.2, (16, 16, 32, 16))
    footage = excerpt.footage()
    found = list(footage)
    assert len(found) == 20 and all(frame.shape == (16, 32, 3) for frame in found)
    assert [frame.mean() for frame in found] == pytest.approx([5 * (10 + k) for k in range(20)], abs=3)
    assert all((one == other).all() for one, other in zip(footage, found, strict=True))
    for again in (footage.part(4, 7), excerpt.footage().part(4, 7)):  # kept, and decoded anew
        assert all((one == other).all() for one, other in zip(again, found[4:7], strict=True))
