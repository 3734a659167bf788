"""Still pictures: turned as EXIF says, on white where transparent, all depths; and what cannot be read is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedtalk_ray.media import pictures
from fedtalk_ray.media.pictures import read_still, smaller
from fedtalk_ray.media.video import VideoError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (21, 35, 3), dtype=np.uint8)  # odd sides


def saved(path: Path, picture: Image.Image, **options) -> Path:
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "no_suffix_at_all"])
def test_a_lossless_picture_comes_back_to_the_bit(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, Image.fromarray(COLOURS), format=None if "." in name else "PNG")
    made = read_still(path)
    assert made.dtype == np.uint8 and (made == COLOURS).all()
    assert made.flags.writeable, "torch warns of others"


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 1), (8, -1)])
def test_a_picture_is_turned_as_the_camera_was_held(tmp_path: Path, orientation: int, turns: int) -> None:
    """EXIF 2.3, tag 274."""
    upright = np.full((40, 64, 3), 60, np.uint8)
    upright[:16, :16] = (250, 20, 20)
    upright[-16:, :16] = (20, 250, 20)
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.ascontiguousarray(np.rot90(upright, turns))
    made = read_still(saved(tmp_path / "a", Image.fromarray(stored), format="JPEG", exif=exif, quality=95))
    assert made.shape == upright.shape
    assert np.abs(made.astype(int) - upright).mean() < 4


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    alpha = np.array([[0, 255, 51]], np.uint8)
    colour = np.array([[[10, 20, 30]] * 3], np.uint8)
    rgba = np.concatenate([colour, alpha[..., None]], axis=-1)
    expected = [[255, 255, 255], [10, 20, 30], [206, 208, 210]]  # 0.8 * 255 + 0.2 * colour
    assert read_still(saved(tmp_path / "a.png", Image.fromarray(rgba)))[0].tolist() == expected
    grey = np.stack([colour[..., 0], alpha], axis=-1)
    assert read_still(saved(tmp_path / "la.png", Image.fromarray(grey, "LA")))[0, :, 0].tolist() == [255, 10, 206]
    deep = RNG.integers(0, 65536, (21, 35), dtype=np.uint16)
    assert (read_still(saved(tmp_path / "d.tiff", Image.fromarray(deep))) == (deep // 257)[..., None]).all()


def test_a_huge_picture_is_shrunk_and_keeps_its_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_SIDE", 64)
    picture = Image.fromarray(np.full((150, 300, 3), 77, np.uint8))
    for name in ("a.png", "a.jpg"):
        made = read_still(saved(tmp_path / name, picture))
        assert made.shape == (32, 64, 3) and np.abs(made.astype(int) - 77).max() <= 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(VideoError, match=r"a\.png: has too many pixels"):
        read_still(tmp_path / "a.png")


def test_no_still_picture_is_left_to_others(tmp_path: Path) -> None:
    for content in (b"", b"plain text", bytes(5000), b"\0\0\0\x18ftypisom" + bytes(50)):
        (tmp_path / "a.png").write_bytes(content)
        assert read_still(tmp_path / "a.png") is None


def test_pictures_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    real = Image.fromarray(np.zeros((8, 8), np.float32))
    heic = tmp_path / "phone.jpg"
    heic.write_bytes(b"\0\0\0\x18ftypheic" + bytes(500))
    cut = saved(tmp_path / "cut.jpg", Image.fromarray(COLOURS))
    cut.write_bytes(cut.read_bytes()[:-200])
    for path, says in (
        (saved(tmp_path / "f.tiff", real), "has floating-point pixels"),
        (heic, "is a HEIC picture, which cannot be read here; save it as JPEG or PNG"),
        (cut, "cannot be decoded (OSError: "),
    ):
        with pytest.raises(VideoError) as caught:
            read_still(path)
        assert str(caught.value).startswith(f"{path}: {says}")


@pytest.mark.parametrize(("size", "expected"), [((300, 100), (300, 100)), ((961, 31), (480, 14))])
def test_large_frames_become_smaller_and_keep_their_shape(size: tuple[int, int], expected: tuple[int, int]) -> None:
    frames = np.zeros((2, *size, 3), np.uint8)
    frames[1, : size[0] // 2] = 200
    found = smaller(frames, 480)
    assert found.shape == (2, *expected, 3) and found[0].max() == 0
    assert found[1].mean() == pytest.approx(frames[1].mean(), abs=2)
