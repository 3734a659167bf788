"""The invisible mark: read after all that happens to a video, in nothing else, and not seen."""

import io

import av
import numpy as np
import pytest
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


def filmed(count: int = 50, height: int = 288, width: int = 360) -> np.ndarray:
    """A scenery that slides, with a camera's noise."""
    large, rng = scenery(height + 40, width + 40), np.random.default_rng(1)
    frames = [large[i // 4 : i // 4 + height, i // 3 : i // 3 + width] for i in range(count)]
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


@pytest.mark.parametrize("number", [0, 1, 4711, 65535])
def test_every_number_is_read_from_one_picture(number: int) -> None:
    found = read([mark(scenery(), number)])
    assert found is not None and found.number == number and found.right > 0.95


def test_mark_outlives_coding_and_scaling_in_two_seconds() -> None:
    frames = filmed()
    number = nearest_number(frames[0])
    frames = np.concatenate(list(marked([frames], number)))
    found = read(coded(coded(frames, 18), 23, 0.75))
    assert found is not None and found.number == number


def test_nothing_is_found_where_nothing_was_put() -> None:
    assert [read([scenery(seed=seed)]) for seed in range(10)] == [None] * 10
    assert read(coded(filmed(10), 23)) is None
    assert read([]) is None


def test_mark_is_not_seen_and_the_nearest_number_changes_the_picture_least() -> None:
    picture = scenery(seed=5)
    change, *others = (mark(picture, n).astype(float) - picture for n in (nearest_number(picture), 1, 4711))
    assert 10 * np.log10(255**2 / np.mean(change**2)) > 43
    assert abs(change).max() <= 12
    assert np.mean(change**2) < 0.7 * min(np.mean(other**2) for other in others)
