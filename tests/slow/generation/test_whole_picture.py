"""`fedtalk generate` in its picture: photos and clips of any size, rate and turn; what is not mouth stays as it was."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from fedtalk_ray.commands.cli import main
from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.errors import UserError
from fedtalk_ray.generation import scene as scenes
from fedtalk_ray.generation.generate import find_scene
from fedtalk_ray.generation.scene import Dubbed, Still, dubbed_file, even
from fedtalk_ray.generation.whole_picture import at_rate, put_back
from fedtalk_ray.media.compositing import mask_of
from fedtalk_ray.media.faces import NoFaceError
from fedtalk_ray.media.following import FollowedFace
from fedtalk_ray.media.lips import lip_motion
from fedtalk_ray.media.video import SAMPLE_RATE, format_of, read_video
from fedtalk_ray.model.pipeline import frame_count

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


def write(path: Path, frames: list[np.ndarray], **settings) -> Path:
    """A clip as others make it, with PyAV alone; 25 frames a second unless told."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            settings.pop("codec", "h264"), rate=settings.pop("rate", 25), options=settings.pop("options", {"crf": "12"})
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
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


def test_a_photo_keeps_its_size_and_its_surroundings(made, picture, tmp_path: Path) -> None:
    photo = picture(241, 303)
    Image.fromarray(photo).save(tmp_path / "p.png")
    frames, lines = made(tmp_path / "p.png", 0.4, "--hold-still")
    assert frames.shape == (10, 240, 302, 3) and not lines
    kept = even(photo)
    assert max(difference(frame[-30:], kept[-30:]) for frame in frames) < 6


def test_a_photo_blinks_and_sways_unless_it_is_to_hold_still(picture) -> None:
    alive, still = Still(picture()), Still(picture(), moves=False)
    assert all((shown.picture == still.reference.picture).all() for shown in still.frames(200))
    moved = [difference(shown.picture, alive.reference.picture) for shown in alive.frames(200)]
    assert moved[0] == 0 and max(moved) > 0.3


@pytest.mark.parametrize(("suffix", "rate"), [("mp4", Fraction(25)), ("mpg", Fraction(30))])
def test_every_frame_comes_once_in_its_turn_and_backwards_too(
    picture, tmp_path: Path, suffix: str, rate: Fraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In MPEG streams a seek ends behind the place asked for."""
    codec = {"mpg": "mpeg2video"}.get(suffix, "h264")
    options = {"bf": "2", "g": "6", "b": "6M"} if codec == "mpeg2video" else {"crf": "12", "b": "2M"}
    pictures = [picture(x=40 + 2 * k) for k in range(20)]
    clip = write(tmp_path / f"c.{suffix}", pictures, rate=rate, codec=codec, options=options)
    monkeypatch.setattr(scenes, "KEPT_BYTES", 0)
    monkeypatch.setattr(scenes, "PIECE_BYTES", 1_000_000)
    dubbed = dubbed_file(clip)
    turns = [*range(20), *range(18, -1, -1), *range(1, 8)]
    for shown, number in zip(dubbed.frames(len(turns)), turns, strict=True):
        assert place_of(shown.picture) == pytest.approx(40 + 2 * number, abs=1)
        assert abs(float((shown.transform @ (0.5, 0, 1))[0]) - 40 - 2 * number - SIDE / 2) < 8
    assert abs(place_of(dubbed.reference.picture) + SIDE / 2 - float((dubbed.reference.transform @ (0.5, 0, 1))[0])) < 8


def place_of(made: np.ndarray) -> float:
    """Where the head begins: a black bar was drawn above it."""
    dark = made[20:30].astype(float).mean((0, -1)) < 40
    return float(np.flatnonzero(dark)[0])


def test_a_clip_keeps_size_speed_and_surroundings(made, picture, tmp_path: Path) -> None:
    """A head goes to the right by a pixel a frame, thirty frames a second."""
    rate, clear = Fraction(30_000, 1001), [picture(288, 360, x=20 + k) for k in range(24)]
    frames, lines = made(write(tmp_path / "c.mp4", clear, rate=rate, sample_aspect_ratio=Fraction(16, 15)), 0.6)
    found = format_of(tmp_path / "o.mp4")
    assert float(found.rate) == pytest.approx(float(rate), rel=0.01) and found.pixel_aspect == Fraction(16, 15)
    assert abs(len(read_video(tmp_path / "o.mp4").audio) - 0.6 * SAMPLE_RATE) < 2048, "the sound is beside the picture"
    assert frames.shape == (math.ceil(0.6 * rate), 288, 360, 3) and not lines
    for number, frame in enumerate(frames):
        assert abs(place_of(frame) - 20 - number) < 1.1
        for beside in (slice(0, 16), slice(170, None), np.s_[60:150, 150:]):
            assert difference(frame[beside], clear[0][beside]) < 4
    assert difference(frames[0][110:140, 50:100], clear[0][110:140, 50:100]) > 9, "the untrained network paints noise"


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


def slid_down(shown: np.ndarray, rows: int) -> np.ndarray:
    """So that the picture's lower edge cuts off what was there."""
    return np.concatenate([shown[:1].repeat(rows, 0), shown[:-rows]])


def test_where_an_edge_cuts_off_the_mouth_a_face_is_left_alone_and_told(made, picture, tmp_path: Path) -> None:
    whole = picture(40 + SIDE + 8)
    cut = slid_down(whole, round(0.4 * SIDE))
    clip = write(tmp_path / "c.mp4", [whole] * 10 + [cut] * 20)
    frames, lines = made(clip, 1.0)
    assert len(lines) == 1 and "no face could be followed in" in lines[0] and "they stay as they are" in lines[0]
    lower = slice(40 + SIDE // 2, 40 + SIDE), slice(60 + SIDE // 4, 60 + 3 * SIDE // 4)
    assert difference(frames[24], cut) < 4 and difference(frames[1][lower], whole[lower]) > 8


def test_a_clip_whose_mouth_is_cut_off_wherever_there_is_a_face_is_refused(picture, tmp_path: Path) -> None:
    cut = slid_down(picture(40 + SIDE + 8), round(0.4 * SIDE))
    clip = write(tmp_path / "c.mp4", [cut] * 12 + [picture(40 + SIDE + 8, x=None)] * 3)
    with pytest.raises(NoFaceError, match=r"mouth is cut off at the picture's edge in \d+ of 15 frames"):
        dubbed_file(clip)


def test_of_two_faces_one_speaks(picture, heads, tmp_path: Path) -> None:
    both = picture(width=400, x=20)
    both[40 : 40 + SIDE, 240 : 240 + SIDE] = heads[1]
    clip = write(tmp_path / "c.mp4", [both] * 8)
    for face, x in ((1, 20), (2, 240)):
        for found in (find_scene(str(clip), 64, 16_000, face, False), Still(both, face)):
            assert found is not None
            assert abs(float((found.reference.transform @ (0.5, 0.5, 1))[0]) - x - SIDE / 2) < 10
    with pytest.raises(UserError, match="--face 3: at most 2 faces can be seen at once"):
        find_scene(str(clip), 64, 16_000, 3, False)


@pytest.mark.parametrize(("seconds", "frames"), [(0.01, 2), (0.081, 3), (0.4, 10)])
def test_a_clip_is_looked_at_as_far_as_it_is_shown(picture, tmp_path: Path, seconds: float, frames: int) -> None:
    clip = write(tmp_path / "c.mp4", [picture(x=40 + 2 * k) for k in range(14)] + [picture(x=None)] * 20)
    samples = round(seconds * SAMPLE_RATE)
    dubbed = dubbed_file(clip, samples)
    assert frame_count(samples, dubbed.rate) == frames
    assert not dubbed.notes and dubbed_file(clip).notes
    places = [place_of(shown.picture) for shown in dubbed.frames(frames)]
    assert places == pytest.approx([40 + 2 * k for k in range(frames)], abs=1)


@pytest.mark.parametrize("rate", [Fraction(50), Fraction(30), Fraction(10)])
def test_frames_are_resampled_in_time(rate: Fraction) -> None:
    ramp = (np.arange(50, dtype=np.uint8) * 4)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    count = int(2 * rate)
    made = [float(frame.mean()) for frame in at_rate(iter(np.split(ramp, 5)), rate, count)]
    np.testing.assert_allclose(made, np.minimum(np.arange(count) * 100 / float(rate), 196), atol=1e-4)


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
