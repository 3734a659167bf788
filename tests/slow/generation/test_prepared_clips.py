"""Clips of shards in their own pictures again: where they lie on disk, with the face where `prepare` found it."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.commands.cli import main
from fedtalk_ray.corpora.listing import open_clip
from fedtalk_ray.corpora.source import ClipSource
from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.generation.samples import write_sample
from fedtalk_ray.generation.scene import dubbed_crops, dubbed_pictures
from fedtalk_ray.marking.credentials import COMPOSITE
from fedtalk_ray.marking.verify import verify
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.lips import aperture_of, face_landmarks
from fedtalk_ray.media.speech import LogMel, speech_windows
from fedtalk_ray.media.video import frames_of, read_video
from fedtalk_ray.model.autoencoder import encode_frames, encoder_fingerprint, load_autoencoder
from fedtalk_ray.shards.format import Manifest, Piece, ShardWriter, load_manifest
from fedtalk_ray.shards.people import People

SIDE, COUNT = 32, 30


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of one clip of a head that moves to the right, a pixel a frame, in a picture of 200 x 160."""
    tmp_path = tmp_path_factory.mktemp("prepared")
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
def film(prepared: Path) -> Iterator[Path]:
    """The film, which a test may spoil."""
    file = prepared.parent / "film.mp4"
    whole = file.read_bytes()
    yield file
    file.write_bytes(whole)


@pytest.fixture
def piece(prepared: Path, film: Path) -> Piece:
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


def test_pieces_make_one_clip_again_and_go_back_and_forth(piece: Piece) -> None:
    def part(begin: int, end: int) -> Piece:
        arrays = {name: getattr(piece, name)[begin:end] for name in ("frames", "landmarks", "places")}
        return replace(piece, begin=begin, **arrays)

    joined, scene = dubbed_pictures([part(0, 12), part(12, COUNT)]), dubbed_pictures([piece])
    assert joined is not None and scene is not None
    for one, other in zip(joined.frames(50), scene.frames(50), strict=True):
        assert (one.picture == other.picture).all() and (one.transform == other.transform).all()


def test_a_film_that_is_gone_or_broken_leaves_the_crops(
    piece: Piece, film: Path, caplog: pytest.LogCaptureFixture
) -> None:
    film.write_bytes(b"no film")
    with caplog.at_level(logging.WARNING):
        assert dubbed_pictures([piece]) is None
    assert caplog.text and "ann" not in caplog.text and "film" not in caplog.text, "logs name nobody and no place"
    film.unlink()
    assert dubbed_pictures([piece]) is None
    crops = [shown.picture for shown in dubbed_crops(piece).frames(COUNT)]
    assert (np.stack(crops) == piece.frames).all()


def test_another_film_in_its_place_is_told_from_it(piece: Piece, film: Path) -> None:
    """Of another size, or of somebody else: a mouth would be laid where the face was in the film of before."""
    frames = np.stack(list(frames_of(film)))
    for part in ({"landmarks": piece.landmarks[:0]}, {"places": piece.places[:0]}, {"footage": ""}):
        assert dubbed_pictures([replace(piece, **part)]) is None, "all of these it takes"
    write_video(film, frames[:, ::2, ::2], None)
    assert dubbed_pictures([piece]) is None
    write_video(film, frames[:, :, ::-1], None)
    assert dubbed_pictures([piece]) is None


def test_samples_and_generate_show_the_whole_picture_and_crops_without_it(
    prepared: Path, film: Path, piece: Piece, make_pipeline, tmp_path: Path
) -> None:
    model = make_pipeline()
    model.save_pretrained(str(tmp_path / "run" / "pipeline"))
    given = ["--run", str(tmp_path / "run"), "--shards", str(prepared), "--out", str(tmp_path / "g.mp4")]

    def sizes(*more: str) -> list[tuple[int, ...]]:
        write_sample(model, piece, tmp_path, "s")
        with pytest.raises(SystemExit) as stopped:
            main(["generate", *given, "--reference", "ann/one", "--audio", "ann/one", *more])
        assert stopped.value.code == 0
        return [(*read_video(tmp_path / f"{name}.mp4").frames.shape[:3],) for name in ("s", "g")]

    assert sizes() == [(COUNT, 160, 200)] * 2
    verdict = verify(tmp_path / "s.mp4")
    assert verdict.problem() == "" and verdict.credentials is not None and verdict.credentials.kind == COMPOSITE
    assert sizes("--crop")[1] == (COUNT, 4 * SIDE, 4 * SIDE)
    film.unlink()
    assert sizes() == [(COUNT, 4 * SIDE, 4 * SIDE)] * 2
