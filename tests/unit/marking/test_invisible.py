"""The invisible mark: read after all that happens to a video, in nothing else, and not seen."""

import io

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from fedtalk_ray.marking import invisible
from fedtalk_ray.marking.invisible import mark, marked, nearest_number, read, sums

_WEIGHTS = np.array([0.299, 0.587, 0.114])


def scenery(height: int = 288, width: int = 360, seed: int = 0) -> np.ndarray:
    """A picture with the spectrum of photographs: amplitude falls with frequency."""
    rng = np.random.default_rng(seed)
    fall = 1 / np.maximum(1, np.hypot(*np.mgrid[:height, : width // 2 + 1]))
    layers = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) * fall, (height, width)) for _ in range(3)]
    picture = np.stack(layers, axis=-1)
    return np.clip(120 + 40 * picture / picture.std(), 0, 255).astype(np.uint8)


def filmed(slides: bool, count: int = 50, height: int = 288, width: int = 360, seed: int = 0) -> np.ndarray:
    """A scenery before which something moves, or that slides as a whole, with a camera's noise."""
    large, rng = scenery(height + 40, width + 40, seed), np.random.default_rng(seed + 1)
    if slides:
        frames = [large[i // 4 : i // 4 + height, i // 3 : i // 3 + width] for i in range(count)]
    else:
        frames = [large[:height, :width].copy() for _ in range(count)]
        for i, frame in enumerate(frames):
            frame[100:200, 120 + i // 2 : 220 + i // 2] = scenery(100, 100, seed + 2)
    return np.clip(np.stack(frames) + rng.normal(scale=2, size=(count, height, width, 3)), 0, 255).astype(np.uint8)


def coded(frames: np.ndarray, crf: int, scale: float = 1.0) -> np.ndarray:
    """Through H.264 and back, after scaling."""
    height, width = (round(side * scale / 2) * 2 for side in frames.shape[1:3])
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=25, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(width=width, height=height, format="yuv420p")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_code_keeps_all_numbers_far_apart() -> None:
    """The code is linear, so its least distance is its lightest word: 23 for BCH(63, 16), by the standard tables."""
    weights = (invisible._codewords() < 0).sum(1)
    assert sorted(weights)[:2] == [0, 23]


def test_sums_are_those_of_the_cosine_transform() -> None:
    picture = scenery(96, 130)
    transform = dctn(picture @ _WEIGHTS, norm="ortho") / np.sqrt(96 * 130)
    cells, weights = invisible._cells()
    expected = (transform[cells[..., 0], cells[..., 1]] * weights).sum(1)
    np.testing.assert_allclose(sums(picture), expected, atol=1e-3)


@given(st.integers(0, 65535))
@settings(max_examples=20, deadline=None)
def test_every_number_is_read_from_one_picture(number: int) -> None:
    found = read([mark(scenery(), number)])
    assert found is not None and found.number == number and found.right > 0.95


@pytest.mark.parametrize(
    ("slides", "crf", "scale"),
    [(True, 23, 1.0), (True, 28, 1.0), (True, 23, 0.75), (False, 28, 1.0), (False, 28, 0.75)],
)
def test_mark_outlives_coding_and_scaling(slides: bool, crf: int, scale: float) -> None:
    """In two seconds."""
    frames = filmed(slides)
    number = nearest_number(frames[0])
    frames = np.concatenate(list(marked([frames], number)))
    found = read(coded(coded(frames, 18), crf, scale))
    assert found is not None and found.number == number


def test_nothing_is_found_where_nothing_was_put() -> None:
    assert [read([scenery(seed=seed)]) for seed in range(30)] == [None] * 30
    assert read(coded(filmed(True), 23)) is None
    assert read([]) is None


@pytest.mark.parametrize("level", [0, 128, 255])
def test_plain_pictures_carry_no_mark_and_take_one(level: int) -> None:
    """At the ends of the scale half of each wave is cut off."""
    plain = np.full((288, 360, 3), level, np.uint8)
    assert read([plain]) is None
    found = read([mark(plain, 4711)])
    assert found is not None and found.number == 4711


def test_mark_is_not_seen() -> None:
    picture = scenery()
    change = mark(picture, nearest_number(picture)).astype(float) - picture
    assert 10 * np.log10(255**2 / np.mean(change**2)) > 43
    assert abs(change).max() <= 12


def test_mark_stretches_with_the_picture() -> None:
    """Read from a picture of another size and shape, as a player may show it."""
    whole = mark(scenery(), 99)
    half = av.VideoFrame.from_ndarray(whole, format="rgb24").reformat(width=200, height=240).to_ndarray(format="rgb24")
    found = read([half])
    assert found is not None and found.number == 99


def test_nearest_number_changes_the_picture_least() -> None:
    picture = scenery(seed=5)
    nearest = nearest_number(picture)

    def change(number: int) -> float:
        return float(np.mean((mark(picture, number).astype(float) - picture) ** 2))

    assert change(nearest) < 0.7 * min(change(number) for number in (1, 99, 4711, 65535))


def test_large_pictures_carry_it_as_small_ones_do() -> None:
    large = mark(scenery(1080, 1920), 1234)
    small = av.VideoFrame.from_ndarray(large, format="rgb24").reformat(width=640, height=360).to_ndarray(format="rgb24")
    for picture in (large, small):
        found = read([picture])
        assert found is not None and found.number == 1234


def test_smooth_places_are_changed_less() -> None:
    picture = scenery()
    picture[:, :180] = 120
    change = np.abs(mark(picture, 77).astype(float) - picture).mean(-1)
    assert change[:, :160].mean() < 0.5 * change[:, 200:].mean()
