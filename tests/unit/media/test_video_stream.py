"""Videos written as they are made, and sound as people have it: any length, any rate, NaN, louder than full scale."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.video import SAMPLE_RATE, VideoError, first_pictures, frames_of, read_audio, read_video
from fedtalk_ray.outputs import OutputError
from tests.unit.media.plain_frames import grey


def test_blocks_make_the_same_video_as_the_whole_array(tmp_path: Path) -> None:
    frames = grey(np.linspace(20, 230, 131).round().astype(int))
    audio = np.random.default_rng(0).normal(0, 0.1, 70_001).astype(np.float32)
    write_video(tmp_path / "whole.mp4", frames, audio)
    write_video(tmp_path / "blocks.mp4", iter(np.split(frames, [7, 7, 47])), audio)
    whole, blocks = read_video(tmp_path / "whole.mp4"), read_video(tmp_path / "blocks.mp4")
    assert (whole.frames == blocks.frames).all() and len(whole.frames) == 131
    assert np.array_equal(whole.audio, blocks.audio)


def test_what_breaks_in_the_middle_leaves_nothing_and_the_old_file_alone(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield grey([90] * 30)
        raise RuntimeError("the model broke")

    (tmp_path / "a.mp4").write_text("older")
    with pytest.raises(RuntimeError, match="the model broke"):
        write_video(tmp_path / "a.mp4", broken(), np.zeros(100, np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "older"
    with pytest.raises(VideoError, match=r"b\.mp4: there is no frame to write"):
        write_video(tmp_path / "b.mp4", iter([]), None)
    with pytest.raises(OutputError, match=f"cannot write {tmp_path / 'a.mp4' / 'b.mp4'}"):
        write_video(tmp_path / "a.mp4" / "b.mp4", grey([90] * 3), None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def sound_file(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE) -> Path:
    wavfile.write(path, rate, samples)
    return path


def tone(seconds: float, rate: int = SAMPLE_RATE, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(
    ("rate", "channels", "kind"),
    [(8000, 1, np.float32), (44_100, 2, np.int16), (16_000, 1, np.uint8), (48_000, 2, np.int32), (16_000, 2, float)],
)
def test_sound_of_any_kind_keeps_its_length_pitch_and_level(tmp_path: Path, rate: int, channels: int, kind) -> None:
    wave = np.tile(tone(0.5, rate)[:, None], (1, channels))
    if kind == np.uint8:
        wave = np.round(wave * 127 + 128)
    elif kind in (np.int16, np.int32):
        wave = np.round(wave.astype(np.float64) * np.iinfo(kind).max)
    audio = read_audio(sound_file(tmp_path / "a.wav", wave.astype(kind), rate))
    assert audio.dtype == np.float32 and abs(len(audio) - 8000) <= 40
    middle = audio[1000:7000]
    assert np.abs(np.fft.rfft(middle)).argmax() * SAMPLE_RATE / len(middle) == pytest.approx(440, abs=3)
    assert np.abs(middle).max() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("channels", [3, 9, 64])
def test_many_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    wave = tone(0.3)[:, None] * np.linspace(0, 2, channels, dtype=np.float32)
    audio = read_audio(sound_file(tmp_path / "a.wav", wave))
    np.testing.assert_allclose(audio, tone(0.3), atol=1e-6)


@pytest.mark.parametrize("level", [1.5, 32_767.0])
def test_sound_louder_than_full_scale_is_turned_down_and_not_clipped(tmp_path: Path, level: float) -> None:
    audio = read_audio(sound_file(tmp_path / "a.wav", tone(0.2, level=level)))
    np.testing.assert_allclose(audio, tone(0.2, level=1.0) / np.abs(tone(0.2, level=1.0)).max(), atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_samples_that_are_no_numbers_are_named_with_their_time(tmp_path: Path, value: float) -> None:
    wave = np.tile(tone(1, 44_100)[:, None], (1, 2))
    wave[22_050, 0] = value
    with pytest.raises(VideoError) as caught:
        read_audio(sound_file(tmp_path / "a.wav", wave, 44_100))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'a.wav'}: ") and "are no numbers (NaN or infinite)" in message
    assert float(message.split("the first at ")[1].split(" s;")[0]) == pytest.approx(0.5, abs=0.02)


MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
"""a, b, c, d of the display matrix in an MP4's track header that turns a picture clockwise for viewing."""


@pytest.mark.parametrize("clockwise", MATRICES)
def test_a_clip_is_turned_as_the_telephone_was_held(tmp_path: Path, clockwise: int) -> None:
    upright = np.full((64, 96, 3), 60, np.uint8)
    upright[:24, :24] = 240
    stored = np.ascontiguousarray(np.rot90(upright, clockwise // 90))
    write_video(tmp_path / "a.mp4", stored[None].repeat(5, 0), None)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    # ISO 14496-12: the matrix lies 44 bytes behind the name of the box, as 16.16 fixed point a b u, c d v.
    matrix = content.index(b"tkhd") + 44
    for place, value in zip((0, 4, 12, 16), MATRICES[clockwise], strict=True):
        content[matrix + place : matrix + place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    (tmp_path / "a.mp4").write_bytes(content)
    made = first_pictures(tmp_path / "a.mp4")
    assert [picture.shape for picture in made] == [(64, 96, 3)] * 5
    assert np.abs(made[0].astype(int) - upright).mean() < 5
    (cut, _) = frames_of(tmp_path / "a.mp4", begin=0.08, end=0.16, crop=(0, 0, 24, 20))
    assert cut.shape == (20, 24, 3) and cut.mean() > 220
