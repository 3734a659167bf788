"""Still pictures: turned as EXIF says, on white where transparent, all depths; and what cannot be read is named."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fedtalk_ray.media import pictures
from fedtalk_ray.media.pictures import read_still, smaller
from fedtalk_ray.media.video import VideoError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (21, 35, 3), dtype=np.uint8)  # odd sides


def saved(path: Path, picture: Image.Image, **options) -> Path:
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.ppm", "a.PNG", "no_suffix_at_all"])
def test_a_lossless_picture_comes_back_to_the_bit(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, Image.fromarray(COLOURS), format=None if "." in name else "PNG")
    made = read_still(path)
    assert made.dtype == np.uint8 and (made == COLOURS).all()
    assert made.flags.writeable, "torch warns of others"


# How a camera stores the picture for each EXIF orientation, from the upright one: EXIF 2.3, tag 274.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),  # to be turned clockwise for viewing
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_is_turned_as_the_camera_was_held(tmp_path: Path, orientation: int, kind: str) -> None:
    upright = np.full((40, 64, 3), 60, np.uint8)
    upright[:16, :16] = (250, 20, 20)
    upright[-16:, :16] = (20, 250, 20)
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    made = read_still(
        saved(
            tmp_path / "a",
            Image.fromarray(stored),
            format=kind,
            exif=exif,
            **({"quality": 95} if kind == "JPEG" else {}),
        )
    )
    assert made.shape == upright.shape
    assert np.abs(made.astype(int) - upright).mean() < 4


def test_grey_pictures_of_any_depth_are_grey_in_colour(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (21, 35), dtype=np.uint8)
    deep = RNG.integers(0, 65536, (21, 35), dtype=np.uint16)
    bits = grey > 127
    for name, picture, expected in (
        ("l", Image.fromarray(grey), grey),
        ("i16", Image.fromarray(deep), deep // 257),
        ("i32", Image.fromarray(deep.astype(np.int32)), deep // 257),
        ("1", Image.fromarray(bits), bits * 255),
    ):
        made = read_still(saved(tmp_path / f"{name}.tiff", picture))
        assert made.shape == (21, 35, 3) and made.dtype == np.uint8
        assert (made == expected[..., None]).all(), name
    made = read_still(saved(tmp_path / "deep.png", Image.fromarray(deep)))
    assert (made == (deep // 257)[..., None]).all()


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    alpha = np.array([[0, 255, 51]], np.uint8)
    colour = np.array([[[10, 20, 30]] * 3], np.uint8)
    rgba = np.concatenate([colour, alpha[..., None]], axis=-1)
    expected = [[255, 255, 255], [10, 20, 30], [206, 208, 210]]  # 0.8 * 255 + 0.2 * colour
    assert read_still(saved(tmp_path / "a.png", Image.fromarray(rgba)))[0].tolist() == expected
    grey = np.stack([colour[..., 0], alpha], axis=-1)
    assert read_still(saved(tmp_path / "la.png", Image.fromarray(grey, "LA")))[0, :, 0].tolist() == [255, 10, 206]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([1, 2, 3, 4, 5, 6])
    assert read_still(saved(tmp_path / "p.png", palette, transparency=0))[0].tolist() == [[255] * 3, [4, 5, 6]]


def test_print_colours_and_animations_are_read(tmp_path: Path) -> None:
    cmyk = Image.fromarray(np.full((8, 8, 4), (0, 255, 255, 0), np.uint8), "CMYK")
    assert np.abs(read_still(saved(tmp_path / "a.jpg", cmyk)).astype(int) - (255, 0, 0)).max() < 4
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_still(tmp_path / "a.gif") == 0).all()


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


def encoded(kind: str) -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}))
    return buffer.getvalue()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]), data=st.data())
def test_damage_gives_a_picture_an_error_or_none_and_never_a_crash(tmp_path: Path, kind: str, data) -> None:
    content = bytearray(encoded(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        made = read_still(path)
    except VideoError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert made is None or (made.dtype == np.uint8 and made.ndim == 3 and made.shape[2] == 3)


@pytest.mark.parametrize(
    ("size", "expected"), [((1080, 1920), (270, 480)), ((300, 100), (300, 100)), ((961, 31), (480, 14))]
)
def test_large_frames_become_smaller_and_keep_their_shape(size: tuple[int, int], expected: tuple[int, int]) -> None:
    frames = np.zeros((2, *size, 3), np.uint8)
    frames[1, : size[0] // 2] = 200
    found = smaller(frames, 480)
    assert found.shape == (2, *expected, 3) and found[0].max() == 0
    assert found[1].mean() == pytest.approx(frames[1].mean(), abs=2)
