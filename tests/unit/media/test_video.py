"""Video files: other rates brought to 25 fps, picture and sound kept together, and bad files named in one line."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.video import FPS, SAMPLE_RATE, VideoError, first_pictures, read_audio, read_video
from tests.unit.media.plain_frames import SIDE, grey


def levels_of(frames: np.ndarray) -> np.ndarray:
    return frames.astype(float).mean(axis=(1, 2, 3))


def source(
    path: Path,
    levels: list[int],
    rate: Fraction | int,
    audio: np.ndarray | None = None,
    audio_rate: int = SAMPLE_RATE,
    channels: int = 1,
    late: float = 0.0,
) -> Path:
    """A file as others make it, with PyAV alone. late: seconds by which the sound starts after the picture, or before
    it if negative."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=rate)
        picture.width = picture.height = SIDE
        picture.pix_fmt, picture.bit_rate = "yuv420p", 4_000_000
        sound = None
        if audio is not None:
            sound = container.add_stream("aac", rate=audio_rate, layout="mono" if channels == 1 else "stereo")
        for number, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((SIDE, SIDE, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number + round(max(0.0, -late) * rate), 1 / Fraction(rate)
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        if sound is not None:
            for begin in range(0, len(audio), 1024):
                part = np.tile(audio[None, begin : begin + 1024].astype(np.float32), (channels, 1))
                piece = av.AudioFrame.from_ndarray(part, format="fltp", layout=sound.layout.name)
                piece.sample_rate, piece.pts = audio_rate, begin + round(max(0.0, late) * audio_rate)
                piece.time_base = Fraction(1, audio_rate)
                container.mux(sound.encode(piece))
            container.mux(sound.encode())
    return path


def hum(seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


def click_time(audio: np.ndarray) -> float:
    """Centre of a click in seconds."""
    energy = audio.astype(float) ** 2
    return float((energy * np.arange(len(audio))).sum() / energy.sum() / SAMPLE_RATE)


def with_click(seconds: float, at: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    audio = np.zeros(round(seconds * rate))
    begin = round(at * rate)
    audio[begin : begin + rate // 200] = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(rate // 200) / rate)
    return audio


@pytest.mark.parametrize("count", [1, 26])
def test_what_is_written_is_read_again(tmp_path: Path, count: int) -> None:
    levels = np.linspace(40, 220, count).round().astype(int)
    write_video(tmp_path / "a.mp4", grey(levels), with_click(count / FPS, 0.7 * count / FPS).astype(np.float32))
    video = read_video(tmp_path / "a.mp4")
    assert video.frames.shape == (count, SIDE, SIDE, 3) and video.frames.dtype == np.uint8
    assert np.abs(levels_of(video.frames) - levels).max() < 4
    assert video.audio.dtype == np.float32 and abs(len(video.audio) - count * 640) < 1100, "AAC works in 1024 samples"
    assert click_time(video.audio) == pytest.approx(0.7 * count / FPS + 0.0025, abs=0.005)


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(25, 2), Fraction(50)])
def test_other_rates_become_25_fps_with_every_frame_at_its_time(tmp_path: Path, rate: Fraction) -> None:
    """Frame k shows the newest picture of a time not after k / 25 s, by the millisecond that containers round to."""
    count = round(2 * rate)
    levels = np.linspace(30, 230, count).round().astype(int)
    video = read_video(source(tmp_path / "a.mp4", list(levels), rate, hum(2)))
    assert abs(len(video.frames) - 50) <= 1
    assert abs(len(video.audio) - 2 * SAMPLE_RATE) < 1500
    newest = [min(count - 1, int(k * rate / FPS + Fraction(11, 10_000) * rate)) for k in range(len(video.frames))]
    assert np.abs(levels_of(video.frames) - levels[newest]).max() < 3


@pytest.mark.parametrize(("late", "rate", "channels"), [(0.4, 44_100, 2), (-0.2, SAMPLE_RATE, 1)])
def test_sound_that_starts_late_is_led_by_silence_and_early_sound_is_cut(
    tmp_path: Path, late: float, rate: int, channels: int
) -> None:
    """The click sounds 0.3 s after the sound begins."""
    path = source(tmp_path / "a.mkv", [20] * 25, 25, with_click(0.8, 0.3, rate), rate, channels, late)
    video = read_video(path)
    assert click_time(video.audio) == pytest.approx(0.3 + late, abs=0.041)
    assert len(video.audio) == pytest.approx((0.8 + late) * SAMPLE_RATE, abs=1500)


def refused(read, path: Path) -> str:
    with pytest.raises(VideoError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("read", [read_video, read_audio, first_pictures])
def test_files_that_are_no_video_are_named(tmp_path: Path, read) -> None:
    assert "does not exist" in refused(read, tmp_path / "none.mp4")
    for name, content in (("text.mp4", b"no video at all\n" * 50), ("noise.mpg", bytes(5000))):
        (tmp_path / name).write_bytes(content)
        assert "cannot be decoded (" in refused(read, tmp_path / name)
    (tmp_path / "empty.mp4").touch()
    assert refused(read, tmp_path / "empty.mp4").endswith("is empty (0 bytes)")
    assert refused(read, tmp_path).endswith("is a folder, not a file")


def test_a_video_without_sound_is_refused_for_training_and_good_as_a_picture(tmp_path: Path) -> None:
    path = source(tmp_path / "a.mp4", [90] * 10, 25)
    assert refused(read_video, path).endswith("holds no sound; a talking head needs speech")
    assert refused(read_audio, path).endswith("holds no sound")
    assert len(first_pictures(path)) == 10
