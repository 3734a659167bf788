from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedtalk_ray.generation.samples import BACKGROUND, GAP, LABEL_HEIGHT, contact_sheet, write_png
from fedtalk_ray.outputs import OutputError


def numbered(count: int, height: int = 4, width: int = 6) -> np.ndarray:
    """Frame t is plain, of level t, but for a white pixel in its top left corner."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = np.arange(count)[:, None, None, None]
    frames[:, 0, 0] = 255
    return frames


def test_every_frame_lies_where_the_docstring_says() -> None:
    """5 of 21 frames: 0, 5, 10, 15 and 20. Above the other row, whose levels are 100 higher."""
    generated = numbered(21) + 100
    sheet = contact_sheet([("truth", numbered(21)), ("generated", generated)], columns=5, scale=3)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * (LABEL_HEIGHT + 12 + GAP), 5 * (18 + GAP) - GAP, 3)
    for row in (0, 1):
        for column in range(5):
            y, x = row * (LABEL_HEIGHT + 12 + GAP) + LABEL_HEIGHT, column * (18 + GAP)
            tile = sheet[y : y + 12, x : x + 18]
            level = 5 * column + 100 * row
            assert (tile[3:] == level).all()
            assert (tile[:3, 3:] == level).all()
            assert (tile[:3, :3] == (255 if row == 0 else 99)).all()  # 255 + 100 wraps to 99
            assert (sheet[y + 12 : y + 12 + GAP, x : x + 18] == BACKGROUND).all()


def test_short_videos_show_each_frame_once_and_rows_share_instants() -> None:
    sheet = contact_sheet([("long", numbered(50)), ("short", numbered(3))], columns=12, scale=1)
    assert sheet.shape[1] == 3 * (6 + GAP) - GAP
    for y in (LABEL_HEIGHT, 2 * LABEL_HEIGHT + 4 + GAP):
        assert sheet[y + 1, :: 6 + GAP, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "at least one video"),
        ([("a", numbered(3)), ("b", numbered(3, 8))], "b: frames are 6x8, those of a are 6x4"),
        ([("a", numbered(3)[:0])], r"a: must be .* got uint8 \[0, 4, 6, 3\]"),
    ],
)
def test_bad_rows_are_named(rows: list[tuple[str, np.ndarray]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        contact_sheet(rows)


def test_a_png_is_whole_and_alone_or_not_there(tmp_path: Path) -> None:
    image = contact_sheet([("a", numbered(5))])
    target = tmp_path / "samples" / "sheet.png"
    write_png(target, image)
    write_png(target, image)
    assert (np.array(Image.open(target)) == image).all()
    with pytest.raises(OutputError, match="cannot write"):
        write_png(target / "sheet.png", image)
    with pytest.raises(TypeError):
        write_png(target.parent / "b.png", np.zeros((4, 4, 3), np.complex64))
    assert [file.name for file in target.parent.iterdir()] == ["sheet.png"]
