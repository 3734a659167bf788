"""Shards: what is read is what was written, no clip in two splits, and one clear line for whatever is damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtalk_ray.errors import ShardError
from fedtalk_ray.shards.format import ARRAYS, PIECE_FRAMES, SPLITS, Manifest, ShardWriter, load_manifest, split_of
from fedtalk_ray.shards.reader import read_pieces, shard_files
from tests.unit.shards.random_clips import PER_FRAME, SHAPES, clip, new_manifest


def write(folder: Path, clients: dict[str, list[int]], unseen: set[str] | None = None, shapes=SHAPES) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, new_manifest(shapes), unseen)
    for who, lengths in clients.items():
        for number, length in enumerate(lengths):
            writer.add(who, f"c{number}", clip(length, number, shapes))
    return writer.close()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 3 * PIECE_FRAMES), min_size=2, max_size=6))
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    root = tmp_path_factory.mktemp("shards")
    manifest = write(root, {"s1": lengths})
    assert load_manifest(root) == manifest
    found: dict[str, list] = {}
    for split in SPLITS:
        for piece in read_pieces(root, manifest, "s1", split):
            assert piece.client == "s1" and split == split_of(int(piece.clip[1:]))
            found.setdefault(piece.clip, []).append(piece)
    everything = [piece for pieces in found.values() for piece in pieces]
    assert sum(manifest.pieces("s1", split) for split in SPLITS) == len(everything)
    assert sum(manifest.frames("s1", split) for split in SPLITS) == sum(lengths)
    assert sorted(found) == [f"c{number}" for number in range(len(lengths))]
    for number, length in enumerate(lengths):
        pieces = found[f"c{number}"]
        sizes = [len(piece.frames) for piece in pieces]
        assert max(sizes) <= PIECE_FRAMES and max(sizes) - min(sizes) <= 1, "equal pieces"
        assert [piece.begin for piece in pieces] == [0, *np.cumsum(sizes)[:-1]]
        for name, expected in clip(length, number).items():
            joined = np.concatenate([getattr(piece, name) for piece in pieces])
            assert joined.dtype == ARRAYS[name] and joined.shape == expected.shape and (joined == expected).all(), name
        for piece in pieces:
            assert len(piece.waveform) == PER_FRAME * len(piece.frames), "the sound of exactly these frames"


def test_two_of_ten_clips_are_held_out() -> None:
    assert [split_of(index) for index in range(4)] == ["train", "val", "test", "train"]
    splits = [split_of(index) for index in range(100)]
    assert (splits.count("val"), splits.count("test")) == (10, 10)


def test_clips_of_one_client_must_arrive_together(tmp_path: Path) -> None:
    """A client that came back would silently replace its own first clips."""
    writer = ShardWriter(tmp_path, new_manifest(), set())
    for who in ("s1", "s2"):
        writer.add(who, "c0", clip(30))
    with pytest.raises(ValueError, match="s1"):
        writer.add("s1", "c1", clip(30))


def refusal(call) -> str:
    with pytest.raises(ShardError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_shards_are_named_with_the_command_that_makes_them(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert f"`fedtalk prepare --out {missing}`" in refusal(lambda: load_manifest(missing))
    assert f"folder {tmp_path} holds no manifest.json" in refusal(lambda: load_manifest(tmp_path))


def test_a_damaged_manifest_and_one_of_another_version_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"s1": [30, 30]})
    path = tmp_path / "manifest.json"
    good = json.loads(path.read_text())
    trees = (None, {}, {"schema_version": 1}, good | {"surprise": 1}, good | {"identities": {"s1": "c0"}})
    for text in ("{", *map(json.dumps, trees)):
        path.write_text(text)
        assert refusal(lambda: load_manifest(tmp_path)).startswith(f"{path} is damaged (")
    path.write_text(json.dumps(good | {"schema_version": 7}))
    assert f"{path} has schema version 7" in refusal(lambda: load_manifest(tmp_path))


def test_a_single_clip_is_trained_on_only_when_the_unseen_were_named(tmp_path: Path) -> None:
    clips = {"pair": [30, 30], "alone": [30], "guest": [30] * 3}
    all_seen = write(tmp_path / "a", {name: clips[name] for name in ("pair", "alone")})
    assert all_seen.clients() == ["pair"] and all_seen.unseen() == ["alone"]
    assert shard_files(tmp_path / "a", "alone", "train") == []
    (piece,) = read_pieces(tmp_path / "a", all_seen, "alone", "test", ("frames",))
    assert (piece.frames == clip(30)["frames"]).all()
    assert [len(getattr(piece, name)) for name in ("latents", "speech", "waveform")] == [0, 0, 0], "not asked for"
    named = write(tmp_path / "b", clips, unseen={"guest"})
    assert named.unseen() == ["guest"] and named.clients() == ["pair"]
    assert [len(list(read_pieces(tmp_path / "b", named, "guest", split))) for split in SPLITS] == [0, 0, 3]
    assert [piece.clip for piece in read_pieces(tmp_path / "b", named, "alone", "train")] == ["c0"]


def test_clients_that_cannot_be_served_are_refused_with_the_reason(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"pair": [30, 30], "alone": [30], "unseen": [30] * 4}, unseen={"unseen"})
    manifest.check_clients(["pair"])
    assert list(read_pieces(tmp_path, manifest, "pair", "test")) == [], "no clip is no damage"
    manifest.shapes = SHAPES | {"frames": [7, 7, 3]}
    for _ in range(2):
        assert str(tmp_path / "client=pair") in refusal(lambda: list(read_pieces(tmp_path, manifest, "pair", "val")))
        (tmp_path / "client=pair" / "val-000.parquet").unlink(missing_ok=True)
    for name, why in (
        ("s9", "not in the shards"),
        ("alone", "1 clip(s) and none to spare"),
        ("unseen", "none to train"),
    ):
        message = refusal(lambda name=name: manifest.check_clients(["pair", name]))
        assert f"client '{name}' " in message and why in message


def test_every_piece_carries_its_clips_identity(tmp_path: Path) -> None:
    manifest = new_manifest()
    manifest.identity, manifest.identity_dimensions, manifest.speech = "dlib", 2, "models/whisper"
    writer = ShardWriter(tmp_path, manifest, None)
    who = {"c0": [0.6, 0.8], "c1": [1.0, 0.0], "c2": [0.0, -1.0]}
    for name, vector in who.items():
        writer.add("s1", name, clip(PIECE_FRAMES + 1) | {"identity": np.array(vector, np.float32)})
    writer.close()
    loaded = load_manifest(tmp_path)
    assert (loaded.speech, loaded.identity, loaded.identity_dimensions) == ("models/whisper", "dlib", 2)
    for split, name in (("train", "c0"), ("val", "c1"), ("test", "c2")):
        pieces = list(read_pieces(tmp_path, loaded, "s1", split, ("latents",)))
        assert len(pieces) == 2 and {piece.clip for piece in pieces} == {name}
        for piece in pieces:
            assert piece.identity.dtype == np.float32
            assert piece.identity.tolist() == pytest.approx(who[name])


def test_shards_of_other_features_and_of_another_autoencoder_are_refused() -> None:
    manifest = new_manifest()
    manifest.check_autoencoder("0123abcd", "models/a")
    message = refusal(lambda: manifest.check_autoencoder("ffff", "models/a"))
    assert all(part in message for part in ("'patch'", "0123abcd", "models/a", "ffff"))
    manifest.check_conditions("log-mel", "none", "models/a")
    message = refusal(lambda: manifest.check_conditions("models/whisper", "none", "models/a"))
    assert "prepared with --speech log-mel, but models/a was trained with models/whisper" in message
    assert "prepared with --identity none, but" in refusal(lambda: manifest.check_conditions("log-mel", "dlib", "a"))
