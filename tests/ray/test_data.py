"""Preparation and streaming on real Ray Data."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedtalk_ray.corpora.listing import CorpusError, list_corpus
from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.errors import ShardError
from fedtalk_ray.generation.scene import dubbed_pictures
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.model.autoencoder import encode_frames, load_autoencoder
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import People
from fedtalk_ray.shards.population import Portion
from fedtalk_ray.shards.prepare import prepare
from fedtalk_ray.shards.reader import read_pieces
from fedtalk_ray.shards.stream import stream_batches
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.slot_settings import StreamConfig


def test_the_drawn_corpus_becomes_shards_that_hold_it(shards: Path) -> None:
    manifest = load_manifest(shards)
    assert manifest.clients() == [f"id{number:04d}" for number in range(7)] and manifest.unseen() == ["id0007"]
    splits = {clip.name: clip.split for clip in manifest.identities["id0001"]}
    assert splits == {"clip0000": "train", "clip0001": "val", "clip0002": "test", "clip0003": "train"}
    piece = next(piece for piece in read_pieces(shards, manifest, "id0001", "train") if piece.clip == "clip0003")
    truth = render_clip(1, 3, seed=3, size=32).video
    np.testing.assert_array_equal(piece.frames, truth.frames)
    np.testing.assert_allclose(piece.waveform / 32767, truth.audio, atol=1e-4)
    latents = encode_frames(load_autoencoder("patch"), truth.frames)
    np.testing.assert_allclose(piece.latents, latents, atol=2e-3)


def drawn(person: int, clip: int, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """A drawn face in a grey picture of 208 x 208, frames and sound."""
    video = render_clip(person, clip, size=128, seconds=seconds).video
    return np.pad(video.frames, ((0, 0), (40, 40), (40, 40), (0, 0)), constant_values=128), video.audio


def test_parts_of_a_film_become_clips_that_know_their_pictures(ray_cluster: None, tmp_path: Path) -> None:
    """As HDTF has them: parts of a film, cut out in time and space."""
    (left, _), (right, sound) = drawn(4, 0, 3.0), drawn(5, 0, 3.0)
    write_video(tmp_path / "hdtf" / "WDA_AdamSmith.mp4", np.concatenate([left, right], axis=2), sound)
    for name, line in {
        "annotion_time": "AdamSmith.mp4 00:00-00:02 00:01-00:03",
        "crop_wh": "AdamSmith_0.mp4 208 208 0 208\nAdamSmith_1.mp4 208 208 0 208",
        "resolution": "AdamSmith.mp4 208",
    }.items():
        (tmp_path / "hdtf" / f"WDA_{name}.txt").write_text(f"{line}\n")
    sources = list_corpus("hdtf", tmp_path / "hdtf")
    manifest = prepare("hdtf", sources, tmp_path / "shards", size=32, autoencoder="patch")
    found = [(clip.name, clip.frames) for clip in manifest.identities["AdamSmith"]]
    assert found == [("AdamSmith_0-000", 50), ("AdamSmith_1-000", 50)] and manifest.rejected == 0
    people = People(tmp_path / "shards", manifest)
    for (name, _), begins in zip(found, (0, 25), strict=True):
        pieces = people.clip("AdamSmith", name)
        scene = dubbed_pictures(pieces)
        assert scene is not None
        for number, (shown, crop) in enumerate(zip(scene.frames(50), pieces[0].frames, strict=True)):
            # The face lies in its picture where the crop was taken, and the picture is the film's.
            assert np.abs(shown.crop(32).astype(int) - crop).mean() < 1.5
            assert np.abs(shown.picture.astype(int) - right[begins + number]).mean() < 3


def test_bad_clips_among_good_ones_are_set_aside_with_their_reason(ray_cluster: None, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for number in range(3):
        write_video(corpus / "ann" / f"good{number}.mp4", *drawn(4, number, 1.2))
    (corpus / "ann" / "broken.mp4").write_bytes(b"not a video" * 100)
    noise = np.random.default_rng(0).integers(0, 255, (30, 96, 96, 3), dtype=np.uint8)
    write_video(corpus / "ann" / "noface.mp4", noise, np.zeros(19_200, np.float32))
    manifest = prepare("folder", list_corpus("folder", corpus), tmp_path / "shards", size=32, autoencoder="patch")
    assert len(manifest.identities["ann"]) == 3 and manifest.rejected == 2
    with open(tmp_path / "shards" / "rejects.csv") as file:
        reasons = {row["clip"]: row["reason"] for row in csv.DictReader(file)}
    assert set(reasons) == {"broken", "noface"}
    assert "cannot be decoded" in reasons["broken"] and "face was found in 0" in reasons["noface"]

    for path in (corpus / "ann").glob("good*"):
        path.unlink()
    with pytest.raises(CorpusError, match="2 of 2 clips were rejected"):
        prepare("folder", list_corpus("folder", corpus), tmp_path / "more", size=32, autoencoder="patch")
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "shards"}


def stream(shards: str | Path, reader: str, seed: int = 5, **settings: int) -> list[WindowBatch]:
    batches = stream_batches(
        shards,
        load_manifest(shards),
        [Portion("id0000"), Portion("id0001", frozenset({1}))],
        window=4,
        windows=30,
        batch_size=3,
        seed=seed,
        stream=StreamConfig(reader=reader, **{"memory_mb": 64, "shuffle_windows": 8} | settings),
    )
    return list(batches)


def test_both_readers_give_the_same_batches(shards: Path) -> None:
    near, far = stream(shards, "direct"), stream(shards, "ray")
    assert len(near) == len(far) == 10
    for ours, theirs in zip(near, far, strict=True):
        for name, values in vars(ours).items():
            assert values.dtype == getattr(theirs, name).dtype
            assert torch.equal(values, getattr(theirs, name)), name
    other = stream(shards, "ray", seed=6)
    assert not torch.equal(other[0].latents, near[0].latents)


def test_a_damaged_shard_is_one_clear_line_through_ray_data_too(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    file = tmp_path / "shards" / "client=id0000" / "train-000.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(ShardError, match=r"train-000.parquet cannot be read: .*CRC") as caught:
        stream(tmp_path / "shards", "ray")
    assert "\n" not in str(caught.value)


def test_streamed_windows_are_stretches_of_the_clients_training_clips(shards: Path) -> None:
    manifest = load_manifest(shards)
    pieces = [piece.latents.astype(np.float32) for piece in read_pieces(shards, manifest, "id0000", "train")]
    pieces += [piece.latents.astype(np.float32) for piece in read_pieces(shards, manifest, "id0001", "train")][1:]
    stretches = {piece[begin : begin + 4].tobytes() for piece in pieces for begin in range(len(piece) - 3)}
    windows = [window.numpy() for batch in stream(shards, "ray") for window in batch.latents]
    assert len(windows) == 30 and all(window.tobytes() in stretches for window in windows)
