"""Video files: other rates brought to 25 fps, picture and sound kept together, and bad files named in one line."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.video import (
    FPS,
    SAMPLE_RATE,
    VideoError,
    first_picture,
    first_pictures,
    frames_of,
    read_audio,
    read_video,
)
from fedtalk_ray.outputs import OutputError
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
    codec: str = "mpeg4",
    options: dict[str, str] | None = None,
    side: int = SIDE,
) -> Path:
    """A file as others make it, with PyAV alone. late: seconds by which the sound starts after the picture, or before
    it if negative. options: the codec's."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream(codec, rate=rate, options=options)
        picture.width = picture.height = side
        picture.pix_fmt, picture.bit_rate = "yuv420p", 4_000_000
        sound = None
        if audio is not None:
            sound = container.add_stream("aac", rate=audio_rate, layout="mono" if channels == 1 else "stereo")
        for number, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), level, np.uint8), format="rgb24")
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


@pytest.mark.parametrize("count", [1, 2, 26, 60])
def test_what_is_written_is_read_again(tmp_path: Path, count: int) -> None:
    levels = np.linspace(40, 220, count).round().astype(int)
    write_video(tmp_path / "a.mp4", grey(levels), hum(count / FPS).astype(np.float32))
    video = read_video(tmp_path / "a.mp4")
    assert video.frames.shape == (count, SIDE, SIDE, 3) and video.frames.dtype == np.uint8
    assert np.abs(levels_of(video.frames) - levels).max() < 4
    assert video.audio.dtype == np.float32 and abs(len(video.audio) - count * 640) < 1100, "AAC works in 1024 samples"
    if count > 25:
        middle = video.audio[6400:12_800]
        assert np.abs(np.fft.rfft(middle)).argmax() * SAMPLE_RATE / len(middle) == pytest.approx(440, abs=5)
        assert np.abs(middle).max() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("flash", [1, 10, 23])
def test_a_click_and_a_flash_stay_together(tmp_path: Path, flash: int) -> None:
    levels = [200 if k == flash else 20 for k in range(25)]
    write_video(tmp_path / "a.mp4", grey(levels), with_click(1, flash / FPS).astype(np.float32))
    video = read_video(tmp_path / "a.mp4")
    assert levels_of(video.frames).argmax() == flash
    assert click_time(video.audio) == pytest.approx(flash / FPS, abs=0.01)


@pytest.mark.parametrize(("samples", "frames"), [(0, 10), (3000, 10), (20_000, 10)])
def test_sound_is_cut_or_padded_to_the_picture(tmp_path: Path, samples: int, frames: int) -> None:
    write_video(tmp_path / "a.mp4", grey([90] * frames), np.full(samples, 0.25, np.float32))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert float(container.streams.audio[0].duration * container.streams.audio[0].time_base) == pytest.approx(
            frames / FPS, abs=0.065
        )


def test_a_file_is_h264_and_aac_and_may_have_no_sound(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", grey([90] * 5), np.zeros(3200, np.float32))
    write_video(tmp_path / "silent.mp4", grey([90] * 5), None)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        assert container.streams.video[0].average_rate == FPS
    with av.open(str(tmp_path / "silent.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(25, 2), Fraction(25), Fraction(50), Fraction(30_000, 1001)])
def test_other_rates_become_25_fps_with_every_frame_at_its_time(tmp_path: Path, rate: Fraction) -> None:
    """Frame k shows the newest picture of a time not after k / 25 s, by the millisecond that containers round to."""
    count = round(2 * rate)
    levels = np.linspace(30, 230, count).round().astype(int)
    video = read_video(source(tmp_path / "a.mp4", list(levels), rate, hum(2)))
    assert abs(len(video.frames) - 50) <= 1
    assert abs(len(video.audio) - 2 * SAMPLE_RATE) < 1500
    newest = [min(count - 1, int(k * rate / FPS + Fraction(11, 10_000) * rate)) for k in range(len(video.frames))]
    assert np.abs(levels_of(video.frames) - levels[newest]).max() < 3


OUT_OF_ORDER = {"x264-params": "bframes=3:b-adapt=0:keyint=12"}
"""Three B-frames in a row; x264 makes none of pictures of 32 pixels."""


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
def test_pictures_that_were_coded_out_of_order_come_in_order(tmp_path: Path, suffix: str) -> None:
    """AVI alone has no time at which a picture is shown: what FFmpeg gives out are the times of packets."""
    levels = np.linspace(30, 230, 50).round().astype(int)
    path = tmp_path / f"a.{suffix}"
    file = source(path, list(levels), FPS, hum(2), codec="libx264", options=OUT_OF_ORDER, side=64)
    with av.open(str(file)) as container:
        assert any(frame.pict_type == PictureType.B.value for frame in container.decode(video=0))
    seen = levels_of(read_video(file).frames)
    assert len(seen) == 50 and np.abs(seen - levels).max() < 3
    part = levels_of(np.stack(list(frames_of(file, 0.8, 1.6, from_picture=True))))
    assert len(part) == 20 and np.abs(part - levels[20:40]).max() < 3


@pytest.mark.parametrize(("rate", "audio_rate", "channels"), [(30, 44_100, 2), (Fraction(25, 2), 48_000, 1)])
def test_sync_survives_other_rates(tmp_path: Path, rate: Fraction | int, audio_rate: int, channels: int) -> None:
    at = 0.8
    levels = [220 if 0 <= k / rate - at + 1e-9 < 0.16 else 20 for k in range(round(2 * rate))]
    path = source(tmp_path / "a.mp4", levels, rate, with_click(2, at, audio_rate), audio_rate, channels)
    video = read_video(path)
    first = int((levels_of(video.frames) > 120).argmax())
    assert first / FPS == pytest.approx(at, abs=0.041)
    assert click_time(video.audio) == pytest.approx(at, abs=0.041)


@pytest.mark.parametrize("late", [0.0, 0.4, -0.2])
def test_sound_that_starts_late_is_led_by_silence_and_early_sound_is_cut(tmp_path: Path, late: float) -> None:
    """The click sounds 0.3 s after the sound begins."""
    path = source(tmp_path / "a.mkv", [20] * 25, 25, with_click(0.8, 0.3), late=late)
    video = read_video(path)
    assert click_time(video.audio) == pytest.approx(0.3 + late, abs=0.041)
    assert len(video.audio) == pytest.approx((0.8 + late) * SAMPLE_RATE, abs=1500)


def test_only_the_first_seconds_are_read_where_a_limit_is_given(tmp_path: Path) -> None:
    path = source(tmp_path / "a.mp4", list(range(40, 115)), 25, hum(3))
    assert len(first_pictures(path)) == 25
    assert len(first_pictures(path, seconds=0.2)) == 5
    assert len(first_pictures(path, every=5)) == 5
    assert np.array_equal(first_picture(path), first_pictures(path)[0])


def test_a_long_file_is_read_to_its_end(tmp_path: Path) -> None:
    """B5: what came after ten minutes was cut off silently."""
    minutes = 11
    path = source(tmp_path / "a.mp4", [60] * (minutes * 60), 1, hum(1))
    assert sum(1 for _ in frames_of(path)) == pytest.approx(minutes * 60 * FPS, abs=FPS)


def test_a_picture_file_is_one_frame(tmp_path: Path) -> None:
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "face.png")
    assert (first_picture(tmp_path / "face.png") == picture).all()


def test_a_sound_file_is_read_without_a_picture(tmp_path: Path) -> None:
    import wave

    samples = (hum(0.5, 8000) * 32767).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    audio = read_audio(tmp_path / "a.wav")
    assert abs(len(audio) - 8000) < 40 and audio.dtype == np.float32
    assert np.abs(np.fft.rfft(audio)).argmax() * SAMPLE_RATE / len(audio) == pytest.approx(440, abs=5)
    with pytest.raises(VideoError, match=r"a\.wav: holds no (video stream|picture)"):
        first_pictures(tmp_path / "a.wav")


def refused(read, path: Path) -> str:
    with pytest.raises(VideoError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("read", [read_video, read_audio, first_pictures])
def test_files_that_are_no_video_are_named(tmp_path: Path, read) -> None:
    assert refused(read, tmp_path / "none.mp4") == f"{tmp_path / 'none.mp4'}: does not exist"
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


@pytest.mark.parametrize("kept", [0.02, 0.5])
def test_a_file_cut_off_in_the_middle_is_named_or_read_up_to_there(tmp_path: Path, kept: float) -> None:
    """An MP4 has its index at the end: nothing can be read. MPEG streams play as far as they go."""
    path = source(tmp_path / "a.mp4", list(range(40, 90)), 25, hum(2))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert "cannot be decoded (" in refused(read_video, path)
    stream = source(tmp_path / "a.mkv", list(range(40, 90)), 25, hum(2))
    stream.write_bytes(stream.read_bytes()[: int(kept * stream.stat().st_size)])
    if kept < 0.1:
        refused(read_video, stream)
    else:
        assert 5 < len(read_video(stream).frames) < 50


def test_a_place_that_cannot_be_written_is_named_and_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match=f"cannot write {tmp_path / 'taken' / 'a.mp4'}"):
        write_video(tmp_path / "taken" / "a.mp4", grey([90] * 3), None)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def sound_file(path: Path, rate: int, blocks: list[np.ndarray], stuck: bool = False) -> Path:
    """Unsigned bytes in Matroska, a packet a block. stuck: every packet says that it begins at 0."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_u8", rate=rate, layout="mono")
        for number, block in enumerate(blocks):
            frame = av.AudioFrame.from_ndarray(block[None].astype(np.uint8), format="u8", layout="mono")
            frame.sample_rate, frame.pts = rate, 0 if stuck else number * len(block)
            for packet in stream.encode(frame):
                if stuck:
                    packet.pts = packet.dts = 0
                container.mux(packet)
    return path


def test_sound_that_would_grow_without_bound_is_refused(tmp_path: Path) -> None:
    """Half a megabyte at 100 samples a second would be 80 million at 16,000; at once it would be all of them."""
    slow = sound_file(tmp_path / "slow.mkv", 100, [np.zeros(1000)])
    with pytest.raises(VideoError, match=r"1000 samples of its sound come at once, at 100 a second"):
        read_audio(slow)
    once = sound_file(tmp_path / "once.mkv", 8000, [np.zeros(8000 * 31)])
    with pytest.raises(VideoError, match=r"248000 samples of its sound come at once, at 8000 a second"):
        read_audio(once)


def test_no_more_sound_is_read_than_is_asked_for_whatever_times_it_says(tmp_path: Path) -> None:
    long = sound_file(tmp_path / "long.mkv", 8000, [np.full(4000, 140)] * 60)
    assert len(read_audio(long)) == 30 * SAMPLE_RATE
    assert 2 * SAMPLE_RATE <= len(read_audio(long, 2.0)) <= 3 * SAMPLE_RATE
    stuck = sound_file(tmp_path / "stuck.mkv", 8000, [np.full(4000, 140)] * 60, stuck=True)
    assert len(read_audio(stuck, 2.0)) <= 3 * SAMPLE_RATE


def test_a_video_of_huge_pictures_is_refused_before_one_is_decoded(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "huge.mov"), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 8000, 8000, "gray"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((8000, 8000), np.uint8), format="gray")))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"has pictures of 8000 x 8000 pixels; shrink it"):
        next(frames_of(tmp_path / "huge.mov"))
