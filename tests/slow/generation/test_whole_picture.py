"""`fedtalk generate` in its picture: photos and clips of any size, rate and turn; what is not mouth stays as it was."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from fedtalk_ray.commands.cli import main
from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.generation import scene as scenes
from fedtalk_ray.generation.generate import find_scene
from fedtalk_ray.generation.scene import Dubbed, Still, dubbed_file, even
from fedtalk_ray.generation.whole_picture import at_rate, put_back, speak_in
from fedtalk_ray.media.compositing import mask_of
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.faces import NoFaceError
from fedtalk_ray.media.following import FollowedFace, follow_face
from fedtalk_ray.media.lips import face_landmarks, lip_motion
from fedtalk_ray.media.video import SAMPLE_RATE, VideoError, format_of, frames_of, read_video
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, frame_count
from fedtalk_ray.model.released import load_released
from fedtalk_ray.runs.folder import RunFolder
from jobs.benchmarks import generating

SIDE = 110


@pytest.fixture(scope="module")
def heads() -> list[np.ndarray]:
    return [render_clip(identity, 0, size=SIDE, seconds=0.04).video.frames[0] for identity in (5, 9)]


@pytest.fixture(scope="module")
def picture(heads) -> Callable[..., np.ndarray]:
    def make(height: int = 200, width: int = 260, x: int | None = 60, number: int = 0) -> np.ndarray:
        y = (np.mgrid[:height, :width].sum(0) % 64 + 90).astype(np.uint8)
        made = np.repeat(y[..., None], 3, -1)
        if x is not None:
            made[40 : 40 + SIDE, x : x + SIDE] = heads[number]
            made[18:32, x : x + SIDE] = 0
        return made

    return make


def write(path: Path, frames: list[np.ndarray], times: list[Fraction] | None = None, **settings) -> Path:
    """A clip as others make it, with PyAV alone. times: seconds of each frame; 25 a second otherwise."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            settings.pop("codec", "h264"), rate=settings.pop("rate", 25), options=settings.pop("options", {"crf": "12"})
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = settings.pop("pix_fmt", "yuv420p")
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 600)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 600), Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def run(make_pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    make_pipeline().save_pretrained(str(folder / "pipeline"))
    return folder


@pytest.fixture
def made(run: Path, tmp_path: Path, capsys) -> Callable[..., tuple[np.ndarray, list[str]]]:
    """Runs the command with so many seconds of noise and returns the video's frames and the lines on stderr."""

    def call(reference: Path, seconds: float, *more: str) -> tuple[np.ndarray, list[str]]:
        noise = np.random.default_rng(0).normal(0, 3000, round(seconds * SAMPLE_RATE)).astype(np.int16)
        wavfile.write(tmp_path / "voice.wav", SAMPLE_RATE, noise)
        given = ["--run", run, "--reference", reference, "--audio", tmp_path / "voice.wav", "--out", tmp_path / "o.mp4"]
        with pytest.raises(SystemExit) as stopped:
            main(["generate", *map(str, given), *more])
        lines = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 0, lines
        with av.open(str(tmp_path / "o.mp4")) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        return frames, [line for line in lines if "frames" in line or line.startswith("reference")]

    return call


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize(("height", "width"), [(288, 360), (241, 303), (720, 400)])
def test_a_photo_keeps_its_size_and_its_surroundings(made, picture, tmp_path: Path, height: int, width: int) -> None:
    photo = picture(height, width)
    Image.fromarray(photo).save(tmp_path / "p.png")
    frames, lines = made(tmp_path / "p.png", 0.4, "--hold-still")
    assert frames.shape == (10, height // 2 * 2, width // 2 * 2, 3) and not lines
    kept = even(photo)
    assert max(difference(frame[-30:], kept[-30:]) for frame in frames) < 6


def test_a_photo_blinks_and_sways_unless_it_is_to_hold_still(picture) -> None:
    alive, still = Still(picture()), Still(picture(), moves=False)
    assert all((shown.picture == still.reference.picture).all() for shown in still.frames(200))
    moved = [difference(shown.picture, alive.reference.picture) for shown in alive.frames(200)]
    assert moved[0] == 0 and max(moved) > 0.3


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "ts", "mpg"])
@pytest.mark.parametrize("rate", [Fraction(30), Fraction(30_000, 1001), Fraction(25)])
def test_every_frame_comes_once_in_its_turn_and_backwards_too(
    picture, tmp_path: Path, suffix: str, rate: Fraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers that count in milliseconds, and MPEG streams in which a seek ends behind the place asked for."""
    codec = {"webm": "libvpx", "mpg": "mpeg2video", "ts": "mpeg2video"}.get(suffix, "h264")
    options = {"bf": "2", "g": "12", "b": "6M"} if codec == "mpeg2video" else {"crf": "12", "b": "2M"}
    clip = write(
        tmp_path / f"c.{suffix}", [picture(x=40 + 2 * k) for k in range(36)], rate=rate, codec=codec, options=options
    )
    monkeypatch.setattr(scenes, "KEPT_BYTES", 0)
    monkeypatch.setattr(scenes, "PIECE_BYTES", 1_000_000)
    dubbed = dubbed_file(clip)
    turns = [*range(36), *range(34, -1, -1), *range(1, 12)]
    for shown, number in zip(dubbed.frames(len(turns)), turns, strict=True):
        assert place_of(shown.picture) == pytest.approx(40 + 2 * number, abs=1)
        assert abs(float((shown.transform @ (0.5, 0, 1))[0]) - 40 - 2 * number - SIDE / 2) < 8
    assert abs(place_of(dubbed.reference.picture) + SIDE / 2 - float((dubbed.reference.transform @ (0.5, 0, 1))[0])) < 8


def place_of(made: np.ndarray) -> float:
    """Where the head begins: a black bar was drawn above it."""
    dark = made[20:30].astype(float).mean((0, -1)) < 40
    return float(np.flatnonzero(dark)[0])


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(24), Fraction(30_000, 1001)])
def test_a_clip_keeps_its_rate_and_its_sound_its_length(made, picture, tmp_path: Path, rate: Fraction) -> None:
    clip = write(tmp_path / "c.mp4", [picture(x=50 + k) for k in range(20)], rate=rate)
    frames, lines = made(clip, 0.6)
    assert len(frames) == math.ceil(0.6 * rate) and not lines
    assert format_of(tmp_path / "o.mp4").rate == rate
    assert format_of(tmp_path / "o.mp4").seconds == pytest.approx(0.6, abs=0.1)


def test_a_clip_of_a_rate_that_varies_keeps_its_speed(picture, tmp_path: Path) -> None:
    """Thirty frames a second, every third missing: where the head is at a time stays so."""
    times = [Fraction(k, 30) for k in range(60) if k % 3]
    clip = write(tmp_path / "c.mp4", [picture(width=320, x=40 + int(60 * time)) for time in times], times, rate=30)
    dubbed = dubbed_file(clip)
    for number, shown in enumerate(dubbed.frames(20)):
        expected = 40 + 60 * (number / dubbed.rate + times[0]) + SIDE / 2
        assert abs(float(shown.transform @ (0.5, 0, 1) @ (1, 0)) - float(expected)) < 8


@pytest.mark.parametrize(
    ("height", "width", "times_larger", "kept", "rate"),
    [(288, 360, 1, 24, 30), (576, 720, 2, 24, 30), (1920, 1080, 6, 18, Fraction(18 * 30, 23))],
    ids=["360x288", "720x576", "1080x1920 of a rate that varies"],
)
def test_clips_of_usual_sizes_keep_size_speed_and_surroundings(
    made, picture, tmp_path: Path, height: int, width: int, times_larger: int, kept: int, rate: Fraction
) -> None:
    """Thirty frames a second; of the last one, as telephones film it, every fourth is missing. A head goes to the right
    by a pixel of the small picture in a thirtieth of a second."""
    numbers = [k for k in range(24) if kept == 24 or k % 4 != 3]
    small = [picture(height // times_larger, width // times_larger, x=20 + k) for k in numbers]
    large = [each.repeat(times_larger, 0).repeat(times_larger, 1) for each in small]
    clip = write(tmp_path / "c.mp4", large, [Fraction(k, 30) for k in numbers], rate=30)
    frames, lines = made(clip, 0.6)
    assert float(format_of(tmp_path / "o.mp4").rate) == pytest.approx(float(rate), rel=0.01)
    assert frames.shape == (math.ceil(0.6 * rate), height, width, 3) and not lines
    for number, frame in enumerate(frames):
        small_again = frame[::times_larger, ::times_larger]
        assert abs(place_of(small_again) - 20 - 30 * number / rate) < 2.1, (
            "no further than to the frame before a missing one"
        )
        beside = [slice(0, 16), slice(170, None)]
        assert all(difference(small_again[rows], small[0][rows]) < 4 for rows in beside)
        assert difference(small_again[60:150, 150:], small[0][60:150, 150:]) < 4
    mouth = tuple(slice(begin * times_larger, end * times_larger) for begin, end in ((110, 140), (50, 100)))
    assert difference(frames[0][mouth], large[0][mouth]) > 9, "the untrained network paints noise"


def test_outside_the_mask_a_clip_stays_to_the_bit(picture, tmp_path: Path) -> None:
    clip = write(tmp_path / "c.mp4", [picture(x=50 + k) for k in range(12)])
    dubbed = dubbed_file(clip)
    white = np.full((12, 64, 64, 3), 255, np.uint8)
    rest = np.zeros((64, 64, 3), np.uint8)
    for shown, frame in zip(dubbed.frames(12), put_back(dubbed, iter([white]), rest, 12), strict=True):
        y, x = np.mgrid[: frame.shape[1], : frame.shape[2]] + 0.5
        places = (np.stack([x, y], -1) - shown.transform[:, 2]) @ np.linalg.inv(shown.transform[:, :2]).T
        rows, columns = (np.flatnonzero(mask_of(64).any(axis)) / 64 for axis in (1, 0))
        inside = (places[..., 0] > columns[0] - 0.04) & (places[..., 0] < columns[-1] + 0.06)
        inside &= (places[..., 1] > rows[0] - 0.04) & (places[..., 1] < rows[-1] + 0.06)
        assert (frame[0] == shown.picture)[~inside].all() and (frame[0] != shown.picture).any()


def test_a_longer_sound_goes_back_and_forth(picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write(tmp_path / "c.mp4", [picture(x=40 + 4 * k) for k in range(6)])
    turns = [0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 4]

    def shown(size: int) -> list[np.ndarray]:
        monkeypatch.setattr(scenes, "KEPT_BYTES", size)
        monkeypatch.setattr(scenes, "PIECE_BYTES", 400_000)
        return [each.picture for each in dubbed_file(clip).frames(len(turns))]

    kept, decoded = shown(1 << 30), shown(0)
    for number, turn in enumerate(turns):
        np.testing.assert_array_equal(kept[number], kept[turn])
        np.testing.assert_array_equal(decoded[number], kept[number])
    assert all(difference(kept[k], kept[k + 1]) > 1 for k in range(5))


def test_only_what_the_sound_needs_of_a_clip_is_looked_at(picture, tmp_path: Path) -> None:
    clip = write(tmp_path / "c.mp4", [picture()] * 10 + [picture(x=None)] * 60)
    assert not dubbed_file(clip, 6400).notes and dubbed_file(clip).notes


def test_a_face_that_leaves_is_told_and_left_alone(made, picture, tmp_path: Path) -> None:
    clip = write(tmp_path / "c.mp4", [picture()] * 26 + [picture(x=None)] * 30)
    frames, lines = made(clip, 2.2)
    assert len(lines) == 1 and "no face could be followed in" in lines[0] and "they stay as they are" in lines[0]
    assert difference(frames[50], picture(x=None)) < 4


def slid_down(shown: np.ndarray, rows: int) -> np.ndarray:
    """So that the picture's lower edge cuts off what was there."""
    return np.concatenate([shown[:1].repeat(rows, 0), shown[:-rows]])


def test_where_an_edge_cuts_off_the_mouth_a_face_is_left_alone_and_told(made, picture, tmp_path: Path) -> None:
    whole = picture(40 + SIDE + 8)
    cut = slid_down(whole, round(0.4 * SIDE))
    clip = write(tmp_path / "c.mp4", [whole] * 26 + [cut] * 30)
    frames, lines = made(clip, 2.2)
    assert len(lines) == 1 and "no face could be followed in" in lines[0] and "they stay as they are" in lines[0]
    lower = slice(40 + SIDE // 2, 40 + SIDE), slice(60 + SIDE // 4, 60 + 3 * SIDE // 4)
    assert difference(frames[50], cut) < 4 and difference(frames[10][lower], whole[lower]) > 8


@pytest.mark.parametrize("beside", [0, 3])
def test_a_clip_whose_mouth_is_cut_off_wherever_there_is_a_face_is_refused(
    picture, tmp_path: Path, beside: int
) -> None:
    """beside: frames without any face."""
    cut = slid_down(picture(40 + SIDE + 8), round(0.4 * SIDE))
    clip = write(tmp_path / "c.mp4", [cut] * 12 + [picture(40 + SIDE + 8, x=None)] * beside)
    with pytest.raises(NoFaceError, match=rf"mouth is cut off at the picture's edge in \d+ of {12 + beside} frames"):
        dubbed_file(clip)


def test_a_face_of_which_an_edge_cuts_off_the_eyes_alone_is_spoken(picture, tmp_path: Path) -> None:
    """A close-up. (A photo of one is refused, since it is to blink.)"""
    crop = picture()[40 + round(0.12 * SIDE) :]
    shown = dubbed_file(write(tmp_path / "c.mp4", [crop[: len(crop) // 2 * 2]] * 6))
    assert [each.opacity for each in shown.frames(6)] == [1] * 6 and not shown.notes


def test_a_mouth_that_hovers_at_an_edge_is_not_lost_and_found_again_and_again(picture) -> None:
    whole = picture(40 + SIDE + 8)
    hovering = [slid_down(whole, round(share * SIDE)) for share in (0.3, 0.4, 0.3, 0.4, 0.3, 0.4, 0.3, 0.4)]
    lost = follow_face([whole] * 5 + hovering).lost()
    assert len(lost) > 1 and np.diff(lost).max() == 1


def test_of_two_faces_one_speaks(picture, heads, tmp_path: Path) -> None:
    both = picture(width=400, x=20)
    both[40 : 40 + SIDE, 240 : 240 + SIDE] = heads[1]
    clip = write(tmp_path / "c.mp4", [both] * 8)
    for face, x in ((1, 20), (2, 240)):
        for found in (find_scene(str(clip), 64, 16_000, face, False), Still(both, face)):
            assert found is not None
            assert abs(float((found.reference.transform @ (0.5, 0.5, 1))[0]) - x - SIDE / 2) < 10


def test_a_clip_of_a_telephone_held_upright(made, picture, tmp_path: Path) -> None:
    upright = picture(260, 200, x=40)
    clip = write(tmp_path / "c.mp4", [np.rot90(upright, 1)] * 6)
    content = bytearray(clip.read_bytes())
    matrix = content.index(b"tkhd") + 44  # ISO 14496-12, as in test_video_stream
    for place, value in zip((0, 4, 12, 16), (0, 1, -1, 0), strict=True):
        content[matrix + place : matrix + place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    clip.write_bytes(content)
    frames, _ = made(clip, 0.2)
    assert frames.shape[1:3] == (260, 200) and difference(frames[0][-40:], upright[-40:]) < 6


@pytest.mark.parametrize("named", [True, False])
def test_colours_of_hd_go_through_whether_they_are_named_or_not(picture, tmp_path: Path, named: bool) -> None:
    """What names no colours is BT.709 from 720 lines on, to players and so here. Compared as stored, in YUV."""
    blue = np.full((720, 800, 3), (20, 60, 200), np.uint8)
    stored = av.VideoFrame.from_ndarray(blue, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
    with av.open(str(tmp_path / "c.mp4"), "w") as container:
        stream = container.add_stream("h264", rate=25, options={"crf": "8"})
        stream.width, stream.height, stream.pix_fmt = 800, 720, "yuv420p"
        if named:
            stream.codec_context.colorspace = 1
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stored.to_ndarray(), format="yuv420p")))
        container.mux(stream.encode())
    write_video(tmp_path / "o.mp4", np.stack(list(frames_of(tmp_path / "c.mp4"))), None)
    with av.open(str(tmp_path / "o.mp4")) as container:
        made = next(container.decode(video=0))
    assert made.colorspace == 1
    assert np.abs(made.to_ndarray().astype(int) - stored.to_ndarray()).max() <= 3


def test_the_shape_of_pixels_goes_through(made, picture, tmp_path: Path) -> None:
    clip = write(tmp_path / "c.mp4", [picture()] * 3, sample_aspect_ratio=Fraction(16, 15))
    made(clip, 0.12)
    assert format_of(tmp_path / "o.mp4").pixel_aspect == Fraction(16, 15)


def test_hdr_is_refused_and_ten_bits_are_told(picture, tmp_path: Path) -> None:
    hdr = write(tmp_path / "h.mp4", [picture()] * 2, color_trc=18)
    with pytest.raises(VideoError, match=r"is HDR \(HLG\); convert it to 8-bit SDR"):
        dubbed_file(hdr)
    deep = write(tmp_path / "d.mp4", [picture()] * 2, pix_fmt="yuv420p10le")
    assert dubbed_file(deep).notes == ("its 10 bits a colour become 8",)


@pytest.mark.parametrize(("seconds", "frames"), [(1.01, 26), (0.01, 2), (0.4, 10), (0.081, 3)])
def test_a_clip_is_looked_at_as_far_as_it_is_shown(picture, tmp_path: Path, seconds: float, frames: int) -> None:
    clip = write(tmp_path / "c.mp4", [picture(x=40 + 2 * k) for k in range(40)])
    samples = round(seconds * SAMPLE_RATE)
    dubbed = dubbed_file(clip, samples)
    assert frame_count(samples, dubbed.rate) == frames
    places = [place_of(shown.picture) for shown in dubbed.frames(frames)]
    assert places == pytest.approx([40 + 2 * k for k in range(frames)], abs=1)


def test_a_large_photo_is_shrunk_and_told(picture) -> None:
    large = np.kron(picture(400, 500), np.ones((5, 5, 1), np.uint8))
    still = Still(large, moves=False)
    assert still.reference.picture.shape == (1536, 1920, 3)
    assert still.notes == ("its 2500 x 2000 pixels become 1920 x 1536",)


def test_a_small_second_face_of_a_photo_can_be_chosen(heads) -> None:
    """Found at a finer scale than the first, which is large."""
    photo = np.full((900, 1500, 3), 128, np.uint8)
    photo[100:650, 100:650] = np.kron(heads[0], np.ones((5, 5, 1), np.uint8))
    photo[300:520, 1100:1320] = np.kron(heads[1], np.ones((2, 2, 1), np.uint8))
    assert abs(float((Still(photo, 2).reference.transform @ (0.5, 0, 1))[0]) - 1210) < 20


REFUSED = {
    "--face 0": "--face 0: faces are counted from 1, from the left",
    "--face 3": "reference {}/c.mp4: --face 3: at most 1 face can be seen at once",
}


@pytest.mark.parametrize("option", REFUSED)
def test_a_face_that_is_not_there_is_one_line(run, picture, tmp_path: Path, capsys, option: str) -> None:
    clip = write(tmp_path / "c.mp4", [picture()] * 5)
    wavfile.write(tmp_path / "v.wav", SAMPLE_RATE, np.zeros(3200, np.int16))
    given = ["--run", run, "--reference", clip, "--audio", tmp_path / "v.wav", "--out", tmp_path / "o.mp4"]
    with pytest.raises(SystemExit) as stopped:
        main(["generate", *map(str, given), *option.split()])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == f"fedtalk: {REFUSED[option].format(tmp_path)}\n"
    assert not (tmp_path / "o.mp4").exists()


@pytest.mark.parametrize("rate", [Fraction(50), Fraction(30), Fraction(25), Fraction(10)])
def test_frames_are_resampled_in_time(rate: Fraction) -> None:
    ramp = (np.arange(50, dtype=np.uint8) * 4)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    count = int(2 * rate)
    made = [float(frame.mean()) for frame in at_rate(iter(np.split(ramp, 5)), rate, count)]
    np.testing.assert_allclose(made, np.minimum(np.arange(count) * 100 / float(rate), 196), atol=1e-4)


def test_the_benchmark_of_generating_runs(run: Path, picture, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.fromarray(picture()).save(tmp_path / "p.png")
    wavfile.write(tmp_path / "voice.wav", SAMPLE_RATE, np.zeros(SAMPLE_RATE // 5, np.int16))
    given = ["--run", str(run), "--audio", str(tmp_path / "voice.wav"), "--times", "3"]
    generating.main([*given, str(tmp_path / "p.png")])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tmp_path / 'p.png'}: 5 frames, ") and float(line.split()[-1]) > 0
    with pytest.raises(SystemExit, match=r"nobody\.png"):
        generating.main([*given, str(tmp_path / "nobody.png")])


def test_the_sound_is_beside_the_picture(made, picture, tmp_path: Path) -> None:
    clip = write(tmp_path / "c.mp4", [picture()] * 10)
    made(clip, 0.4)
    assert abs(len(read_video(tmp_path / "o.mp4").audio) - 0.4 * SAMPLE_RATE) < 2048


def test_frames_in_which_the_face_is_lost_say_nothing_of_where_lips_lie(picture) -> None:
    """The most closed of the followed frames is the reference, by its number in the clip; the mean is of these."""
    rng = np.random.default_rng(0)
    points = np.repeat(rng.uniform(0.3, 0.7, (1, 68, 2)), 40, axis=0).astype(np.float32)
    points += rng.normal(0, 0.05, points.shape).astype(np.float32)
    openness, transforms = rng.uniform(0.1, 0.3, 40), np.repeat(np.array([[[110.0, 0, 60], [0, 110, 40]]]), 40, axis=0)
    lost = np.isin(np.arange(40), (0, 1, 7, 30))
    openness[25] = 0.05
    for values in (points, openness, transforms):
        values[lost] = np.nan
    face = FollowedFace(transforms, np.where(lost, 0.0, 1.0), openness, points, 0)
    pictures = [picture(x=40 + k) for k in range(40)]
    dubbed = Dubbed(scenes._Crops(np.stack(pictures)), face)
    assert (dubbed.reference.picture == even(pictures[25])).all()
    np.testing.assert_array_equal(dubbed.reference_lips, lip_motion(points[~lost])[25 - 3])


def test_a_clip_of_somebody_who_speaks_tells_where_the_references_lips_lie(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As her crops tell it; a photo, and a clip of less than a second, say no more than the picture does."""
    drawn = render_clip(2, 0, size=SIDE, seconds=2).video.frames
    heads = [np.pad(frame, ((40, 50), (60, 90), (0, 0)), constant_values=100) for frame in drawn]
    clip, short = (write(tmp_path / f"{count}.mp4", heads[:count]) for count in (len(heads), 20))
    dubbed = dubbed_file(clip)
    crops = np.stack([shown.crop(128) for shown in dubbed.frames(len(heads))])
    number = int(np.argmin([np.abs(dubbed.reference.crop(128).astype(int) - crop).mean() for crop in crops]))
    expected = lip_motion(face_landmarks(crops))[number]
    known = dubbed.reference_lips
    assert known is not None and np.corrcoef(known[1:], expected[1:])[0, 1] > 0.8
    assert known[0] == pytest.approx(expected[0], abs=0.05)
    few = dubbed_file(short).reference_lips
    assert few is not None and not np.isnan(few[0]) and np.isnan(few[1:]).all()
    assert Still(heads[0]).reference_lips is None

    told = []
    stream = TalkingHeadPipeline.stream

    def watched(*given: Any, **more: Any) -> Any:
        told.append(more["reference_lips"])
        return stream(*given, **more)

    monkeypatch.setattr(TalkingHeadPipeline, "stream", watched)
    model, sound = load_released(RunFolder(run)), np.zeros(SAMPLE_RATE // 5, np.float32)
    for scene in (dubbed, Still(heads[0])):
        list(speak_in(scene, model, sound, 5, torch.Generator().manual_seed(0)))
    np.testing.assert_array_equal(told[0], known)
    assert told[1] is None
