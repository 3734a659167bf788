"""Videos written as they are made, and sound as people have it: any length, any rate, NaN, louder than full scale."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.io import wavfile

from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.video import (
    FPS,
    SAMPLE_RATE,
    VideoError,
    first_pictures,
    frames_of,
    read_audio,
    read_video,
)
from tests.unit.media.plain_frames import SIDE, grey


def in_blocks(frames: np.ndarray, lengths: list[int]) -> Iterator[np.ndarray]:
    """Blocks of these lengths, the last length again and again; 0 is an empty block."""
    begin = 0
    while begin < len(frames):
        length = lengths.pop(0) if len(lengths) > 1 else lengths[0]
        yield frames[begin : begin + length]
        begin += length


@pytest.mark.parametrize("lengths", [[1], [7, 0, 40, 3], [25], [500]])
def test_blocks_make_the_same_video_as_the_whole_array(tmp_path: Path, lengths: list[int]) -> None:
    frames = grey(np.linspace(20, 230, 131).round().astype(int))
    audio = np.random.default_rng(0).normal(0, 0.1, 70_001).astype(np.float32)
    write_video(tmp_path / "whole.mp4", frames, audio)
    write_video(tmp_path / "blocks.mp4", in_blocks(frames, lengths), audio)
    whole, blocks = read_video(tmp_path / "whole.mp4"), read_video(tmp_path / "blocks.mp4")
    assert (whole.frames == blocks.frames).all() and len(whole.frames) == 131
    assert np.array_equal(whole.audio, blocks.audio)


@pytest.mark.parametrize("block", [1, 25, 64])
def test_flash_and_click_stay_together_to_the_end_of_a_long_stream(tmp_path: Path, block: int) -> None:
    """Onsets, found by threshold in picture and sound of the file, less than half a frame apart after 40 s."""
    flashes, frames = [30, 511, 1000], 1030
    levels = np.full(frames, 20)
    audio = np.zeros(frames * 640, np.float32)
    for flash in flashes:
        levels[flash : flash + 5] = 220
        audio[flash * 640 : (flash + 5) * 640] = 0.5 * np.sin(np.arange(3200) * 0.4)
    write_video(tmp_path / "a.mp4", in_blocks(grey(levels), [block]), audio)
    video = read_video(tmp_path / "a.mp4")
    assert len(video.frames) == frames
    shown = np.flatnonzero(np.diff((video.frames.mean(axis=(1, 2, 3)) > 120).astype(int)) > 0) + 1
    assert shown.tolist() == flashes
    loud = np.abs(video.audio) > 0.25
    heard = [index for index in np.flatnonzero(loud) if not loud[max(0, index - 8000) : index].any()]
    assert np.array(heard) / SAMPLE_RATE == pytest.approx(np.array(flashes) / FPS, abs=0.02)


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """Counted: what numpy and Python hold; a frame of 128 x 128 is 49 kB."""

    def stream(blocks: int) -> Iterator[np.ndarray]:
        for number in range(blocks):
            yield np.full((10, 128, 128, 3), number, np.uint8)

    peaks = []
    for blocks in (3, 30):
        tracemalloc.start()
        write_video(tmp_path / "a.mp4", stream(blocks), np.zeros(100, np.float32))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000, "not five more frames, of 270"


def test_sound_lies_beside_its_picture_in_the_file(tmp_path: Path) -> None:
    """A player that streams needs no more than a second or two of the file to begin."""
    write_video(tmp_path / "a.mp4", grey([90] * 500), np.zeros(320_000, np.float32))
    with av.open(str(tmp_path / "a.mp4")) as container:
        order = sorted((packet.pos, packet.stream.type) for packet in container.demux() if packet.pos is not None)
    kinds = [kind for _, kind in order]
    assert kinds.index("audio") < 60
    half = kinds[: len(kinds) // 2]
    assert 0.35 < half.count("audio") / kinds.count("audio") < 0.65


def test_what_breaks_in_the_middle_leaves_nothing_and_the_old_file_alone(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield grey([90] * 30)
        raise RuntimeError("the model broke")

    (tmp_path / "a.mp4").write_text("older")
    with pytest.raises(RuntimeError, match="the model broke"):
        write_video(tmp_path / "a.mp4", broken(), np.zeros(100, np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "older"


@pytest.mark.parametrize("frames", [np.zeros((0, SIDE, SIDE, 3), np.uint8), iter([])])
def test_no_frame_at_all_is_said_and_nothing_written(tmp_path: Path, frames) -> None:
    with pytest.raises(VideoError, match=r"a\.mp4: there is no frame to write"):
        write_video(tmp_path / "a.mp4", frames, None)
    assert not list(tmp_path.iterdir())


def sound_file(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE) -> Path:
    wavfile.write(path, rate, samples)
    return path


def tone(seconds: float, rate: int = SAMPLE_RATE, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.int32, np.uint8])
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


@pytest.mark.parametrize("channels", [3, 8, 9, 64])
def test_many_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    wave = tone(0.3)[:, None] * np.linspace(0, 2, channels, dtype=np.float32)
    audio = read_audio(sound_file(tmp_path / "a.wav", wave))
    np.testing.assert_allclose(audio, tone(0.3), atol=1e-6)


def test_joined_sounds_of_two_kinds_are_read_one_after_the_other(tmp_path: Path) -> None:
    """AAC streams may be joined as they are. An encoder adds at most two frames of 1024 samples."""
    parts, seconds = [], {(16_000, "mono"): 1.0, (44_100, "stereo"): 0.8}
    for (rate, layout), length in seconds.items():
        with av.open(str(tmp_path / "a.aac"), "w", format="adts") as container:
            stream = container.add_stream("aac", rate=rate, layout=layout)
            wave = np.tile(tone(length, rate), (1 if layout == "mono" else 2, 1))
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=layout)
            frame.sample_rate = rate
            container.mux([*stream.encode(frame), *stream.encode()])
        parts.append((tmp_path / "a.aac").read_bytes())
    for name, joined in (("ab.aac", parts[0] + parts[1]), ("ba.aac", parts[1] + parts[0])):
        (tmp_path / name).write_bytes(joined)
        assert 1.8 * SAMPLE_RATE <= len(read_audio(tmp_path / name)) <= 1.8 * SAMPLE_RATE + 3000


def test_a_long_sound_lies_in_memory_once(tmp_path: Path) -> None:
    path = sound_file(tmp_path / "a.wav", np.zeros(120 * SAMPLE_RATE, np.int16))
    tracemalloc.start()
    audio = read_audio(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * audio.nbytes


def test_a_time_far_ahead_does_not_fill_the_memory(tmp_path: Path) -> None:
    """A damaged time stamp: nine days are 20 million frames."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("h264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for time in (0, 1, 20_000_000):
            frame = av.VideoFrame.from_ndarray(grey([90])[0], format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert len(first_pictures(tmp_path / "a.mkv", 1.0)) == FPS


def test_a_long_sound_is_read_to_its_end(tmp_path: Path) -> None:
    samples = np.zeros(605 * 8000, np.uint8) + np.uint8(128)
    samples[-8000:] = 200
    audio = read_audio(sound_file(tmp_path / "a.wav", samples, 8000))
    assert abs(len(audio) - 605 * SAMPLE_RATE) <= 40
    assert np.abs(audio[-8000:]).min() > 0.5 and np.abs(audio[: 603 * SAMPLE_RATE]).max() < 0.01


@pytest.mark.parametrize("level", [1.5, 32_767.0])
def test_sound_louder_than_full_scale_is_turned_down_and_not_clipped(tmp_path: Path, level: float) -> None:
    audio = read_audio(sound_file(tmp_path / "a.wav", tone(0.2, level=level)))
    np.testing.assert_allclose(audio, tone(0.2, level=1.0) / np.abs(tone(0.2, level=1.0)).max(), atol=1e-5)


def test_clipped_sound_stays_as_it_is(tmp_path: Path) -> None:
    clipped = tone(0.2, level=3.0).clip(-1, 1)
    np.testing.assert_allclose(read_audio(sound_file(tmp_path / "a.wav", clipped)), clipped, atol=1e-6)


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_named_with_their_time(
    tmp_path: Path, rate: int, channels: int, value: float
) -> None:
    wave = np.tile(tone(1, rate)[:, None], (1, channels))
    wave[rate // 2, 0] = value
    with pytest.raises(VideoError) as caught:
        read_audio(sound_file(tmp_path / "a.wav", wave, rate))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'a.wav'}: ") and "are no numbers (NaN or infinite)" in message
    assert float(message.split("the first at ")[1].split(" s;")[0]) == pytest.approx(0.5, abs=0.02)


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sound_file(Path("take:2.wav"), tone(0.1))
    assert len(read_audio("take:2.wav")) == 1600
    write_video("a:b.mp4", grey([90] * 3), None)
    assert len(first_pictures("a:b.mp4")) == 3


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
    # B20: a part that is cut out in time and to a region is turned alike.
    (cut, _) = frames_of(tmp_path / "a.mp4", begin=0.08, end=0.16, crop=(0, 0, 24, 20))
    assert cut.shape == (20, 24, 3) and cut.mean() > 220
