"""Clips of shards in their own pictures again: where they lie on disk, with the face where `prepare` found it."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fedtalk_ray.commands.cli import main
from fedtalk_ray.corpora.listing import open_clip
from fedtalk_ray.corpora.source import ClipSource
from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.generation import samples
from fedtalk_ray.generation.samples import write_sample
from fedtalk_ray.generation.scene import dubbed_crops, dubbed_pictures
from fedtalk_ray.marking.credentials import COMPOSITE
from fedtalk_ray.marking.verify import verify
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.lips import aperture_of, face_landmarks
from fedtalk_ray.media.speech import LogMel, speech_windows
from fedtalk_ray.media.video import VideoError, format_of, frames_of
from fedtalk_ray.model.autoencoder import encode_frames, encoder_fingerprint, load_autoencoder
from fedtalk_ray.shards.format import Manifest, Piece, ShardWriter, load_manifest
from fedtalk_ray.shards.people import People
from jobs.benchmarks import marks

SIDE, COUNT = 32, 30


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Shards of one clip of a head that moves to the right, a pixel a frame, in a picture of 200 x 160."""
    head = render_clip(2, 0, size=110, seconds=COUNT / 25).video
    frames = np.full((COUNT, 160, 200, 3), 128, np.uint8)
    for number in range(COUNT):
        frames[number, 20:130, 30 + number : 140 + number] = head.frames[number]
    write_video(tmp_path / "film.mp4", frames, head.audio)
    source = ClipSource("ann", "one", str(tmp_path / "film.mp4"))
    clip, excerpt, encoder = open_clip(source, SIDE), source.excerpt(), load_autoencoder("patch")
    assert excerpt is not None
    crops = np.stack(list(clip.crops))
    arrays = {
        "frames": crops,
        "latents": encode_frames(encoder, crops).astype(np.float16),
        "speech": speech_windows(clip.audio, COUNT).astype(np.float16),
        "waveform": (np.resize(clip.audio, COUNT * 640) * 32767).astype(np.int16),
        "landmarks": face_landmarks(crops),
        "places": clip.places,
    }
    shapes = {"frames": [SIDE, SIDE, 3], "latents": [16, 8, 8], "speech": list(LogMel.shape), "waveform": []}
    manifest = Manifest("folder", SIDE, 25, 16_000, "patch", encoder_fingerprint(encoder), shapes)
    (tmp_path / "shards").mkdir()
    writer = ShardWriter(tmp_path / "shards", manifest, {"ann"})
    writer.add("ann", "one", arrays, footage=excerpt.text())
    writer.close()
    return tmp_path / "shards"


@pytest.fixture
def piece(prepared: Path) -> Piece:
    return next(People(prepared, load_manifest(prepared)).pieces("ann", "test"))


def test_the_pictures_are_the_films_with_the_face_where_it_was_found(piece: Piece) -> None:
    scene = dubbed_pictures([piece])
    assert scene is not None
    shown = list(scene.frames(COUNT))
    assert all(each.picture.shape == (160, 200, 3) and each.opacity == 1 for each in shown)
    differences = [np.abs(each.crop(SIDE).astype(int) - crop) for each, crop in zip(shown, piece.frames, strict=True)]
    assert np.mean(differences) < 1
    closed = int(aperture_of(piece.landmarks).argmin())
    assert (scene.reference.transform == piece.places[closed]).all()


def test_a_later_piece_begins_where_it_does_in_the_film(piece: Piece) -> None:
    arrays = {name: getattr(piece, name)[20:] for name in ("frames", "landmarks", "places")}
    later = dubbed_pictures([replace(piece, begin=20, **arrays)])
    scene = dubbed_pictures([piece])
    assert scene is not None and later is not None
    whole, rest = list(scene.frames(COUNT)), list(later.frames(10))
    assert all((one.picture == other.picture).all() for one, other in zip(rest, whole[20:], strict=True))


def test_pieces_make_one_clip_again_and_go_back_and_forth(piece: Piece) -> None:
    def part(begin: int, end: int) -> Piece:
        arrays = {name: getattr(piece, name)[begin:end] for name in ("frames", "landmarks", "places")}
        return replace(piece, begin=begin, **arrays)

    joined, scene = dubbed_pictures([part(0, 12), part(12, COUNT)]), dubbed_pictures([piece])
    assert joined is not None and scene is not None
    for one, other in zip(joined.frames(50), scene.frames(50), strict=True):
        assert (one.picture == other.picture).all() and (one.transform == other.transform).all()


def test_a_film_that_is_gone_or_broken_leaves_the_crops(
    piece: Piece, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "film.mp4").write_bytes(b"no film")
    with caplog.at_level(logging.WARNING):
        assert dubbed_pictures([piece]) is None
    assert "a clip is shown by its crops: its file can no longer be read" in caplog.text
    assert "ann" not in caplog.text and "film" not in caplog.text, "logs name nobody and no place"
    (tmp_path / "film.mp4").unlink()
    assert dubbed_pictures([piece]) is None
    assert dubbed_pictures([replace(piece, footage="")]) is None
    crops = [shown.picture for shown in dubbed_crops(piece).frames(COUNT)]
    assert (np.stack(crops) == piece.frames).all()


def test_another_film_in_its_place_is_told_from_it(piece: Piece, tmp_path: Path) -> None:
    """Of another size, or of somebody else: a mouth would be laid where the face was in the film of before."""
    frames = np.stack(list(frames_of(tmp_path / "film.mp4")))
    write_video(tmp_path / "film.mp4", frames[:, ::2, ::2], None)
    assert dubbed_pictures([piece]) is None
    write_video(tmp_path / "film.mp4", frames[:, :, ::-1], None)
    assert dubbed_pictures([piece]) is None
    write_video(tmp_path / "film.mp4", frames, None)
    assert dubbed_pictures([piece]) is not None, "coded once more it is the same"


def test_what_generate_refuses_as_a_file_is_no_picture_of_a_clip_either(piece: Piece, tmp_path: Path) -> None:
    frames = list(frames_of(tmp_path / "film.mp4"))
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("h264", rate=25, options={"crf": "12"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.color_trc = "yuv420p", 16  # PQ
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    assert format_of(tmp_path / "film.mp4").hdr
    assert dubbed_pictures([piece]) is None


def test_pixels_that_are_not_square_stay_so(piece: Piece, prepared: Path, make_pipeline, tmp_path: Path) -> None:
    frames = np.stack(list(frames_of(tmp_path / "film.mp4")))
    write_video(tmp_path / "film.mp4", frames, None, pixel_aspect=Fraction(16, 11))
    scene = dubbed_pictures([piece])
    assert scene is not None and scene.pixel_aspect == Fraction(16, 11)
    write_sample(make_pipeline(), piece, tmp_path, "s")
    assert format_of(tmp_path / "s.mp4").pixel_aspect == Fraction(16, 11)


def test_a_sample_says_that_it_was_generated(piece: Piece, make_pipeline, tmp_path: Path) -> None:
    write_sample(make_pipeline(), piece, tmp_path, "s")
    verdict = verify(tmp_path / "s.mp4")
    assert verdict.problem() == ""
    assert verdict.credentials is not None and verdict.credentials.kind == COMPOSITE


def test_a_film_that_breaks_off_leaves_a_sample_of_crops(
    piece: Piece, make_pipeline, tmp_path: Path, monkeypatch
) -> None:
    def breaks_off(*_: object) -> Iterator[np.ndarray]:
        yield np.zeros((1, 160, 200, 3), np.uint8)
        raise VideoError("is cut off")

    scene = dubbed_pictures([piece])
    assert scene is not None
    made = samples.speak_in
    monkeypatch.setattr(samples, "speak_in", lambda s, *a, **k: made(s, *a, **k) if s is not scene else breaks_off())
    monkeypatch.setattr(samples, "dubbed_pictures", lambda _: scene)
    write_sample(make_pipeline(), piece, tmp_path, "s")
    assert read_video_size(tmp_path / "s.mp4") == (4 * SIDE, 4 * SIDE, COUNT)


def read_video_size(file: Path) -> tuple[int, int, int]:
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height, stream.frames


def test_landmarks_and_places_go_together(piece: Piece) -> None:
    assert dubbed_pictures([replace(piece, landmarks=piece.landmarks[:0])]) is None
    assert dubbed_pictures([replace(piece, places=piece.places[:0])]) is None


def test_samples_and_generate_show_the_whole_picture_and_crops_without_it(
    prepared: Path, piece: Piece, make_pipeline, tmp_path: Path
) -> None:
    model = make_pipeline()
    model.save_pretrained(str(tmp_path / "run" / "pipeline"))
    given = ["--run", str(tmp_path / "run"), "--shards", str(prepared), "--out", str(tmp_path / "g.mp4")]

    def sizes(*more: str) -> list[tuple[int, int, int]]:
        write_sample(model, piece, tmp_path, "s")
        with pytest.raises(SystemExit) as stopped:
            main(["generate", *given, "--reference", "ann/one", "--audio", "ann/one", *more])
        assert stopped.value.code == 0
        return [read_video_size(tmp_path / f"{name}.mp4") for name in ("s", "g")]

    assert sizes() == [(200, 160, COUNT), (200, 160, COUNT)]
    assert sizes("--crop")[1] == (4 * SIDE, 4 * SIDE, COUNT)
    (tmp_path / "film.mp4").unlink()
    assert sizes() == [(4 * SIDE, 4 * SIDE, COUNT), (4 * SIDE, 4 * SIDE, COUNT)]


def test_the_benchmark_of_marks_runs(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marks.main(["--shards", str(prepared), "--clips", "1", "--unmarked", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert "| as written | 1 |" in lines
    assert "found in 0 of 3 without a mark" in lines
