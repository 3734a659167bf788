"""Shards: what is read is what was written, no clip in two splits, and one clear line for whatever is damaged."""

import json
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtalk_ray.errors import ShardError
from fedtalk_ray.shards.format import (
    ARRAYS,
    PIECE_FRAMES,
    ROW_GROUP_BYTES,
    SPLITS,
    Manifest,
    ShardWriter,
    load_manifest,
    split_of,
)
from fedtalk_ray.shards.reader import read_pieces, shard_files, stored_identity
from tests.unit.shards.random_clips import PER_FRAME, SHAPES, clip, new_manifest


def write(folder: Path, clients: dict[str, list[int]], unseen: set[str] | None = None, shapes=SHAPES) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, new_manifest(shapes), unseen)
    for who, lengths in clients.items():
        for number, length in enumerate(lengths):
            writer.add(who, f"c{number}", clip(length, number, shapes))
    return writer.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 3 * PIECE_FRAMES), min_size=1, max_size=6))
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    root = tmp_path_factory.mktemp("shards")
    write(root, {"s1": lengths})
    manifest = load_manifest(root)
    found: dict[str, list] = {}
    for split in SPLITS:
        for piece in read_pieces(root, manifest, "s1", split):
            assert piece.client == "s1"
            found.setdefault(piece.clip, []).append(piece)
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


@settings(max_examples=10, deadline=None)
@given(clients=st.lists(st.integers(1, 23), min_size=1, max_size=3))
def test_no_clip_is_in_two_splits_and_the_manifest_counts_right(tmp_path_factory, clients: list[int]) -> None:
    root = tmp_path_factory.mktemp("shards")
    manifest = write(root, {f"s{who}": [30] * count for who, count in enumerate(clients)})
    assert load_manifest(root) == manifest
    for who, count in enumerate(clients):
        name = f"s{who}"
        clips = {split: [p.clip for p in read_pieces(root, manifest, name, split, ())] for split in SPLITS}
        assert sorted(chain(*clips.values())) == sorted(f"c{number}" for number in range(count))
        for split in SPLITS:
            assert manifest.frames(name, split) == 30 * len(clips[split])
            assert manifest.pieces(name, split) == len(clips[split])
        if count > 1:
            assert clips["train"] and clips["val"]


def test_two_of_ten_clips_are_held_out() -> None:
    assert [split_of(index) for index in range(4)] == ["train", "val", "test", "train"]
    splits = [split_of(index) for index in range(100)]
    assert (splits.count("val"), splits.count("test")) == (10, 10)


def test_a_client_with_a_single_clip_is_for_testing_only(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"alone": [30], "pair": [30, 30]})
    assert manifest.clients() == ["pair"] and manifest.unseen() == ["alone"]
    assert shard_files(tmp_path, "alone", "train") == []
    (piece,) = read_pieces(tmp_path, manifest, "alone", "test")
    assert (piece.frames == clip(30)["frames"]).all()


def test_of_an_unseen_client_nothing_is_for_training(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"s1": [30, 30], "s2": [30] * 5}, unseen={"s2"})
    assert manifest.clients() == ["s1"] and manifest.unseen() == ["s2"]
    assert [len(list(read_pieces(tmp_path, manifest, "s2", split))) for split in SPLITS] == [0, 0, 5]


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"s1": [30, 30]})
    (piece,) = read_pieces(tmp_path, manifest, "s1", "train", ("latents",))
    assert len(piece.latents) == 30
    assert [len(getattr(piece, name)) for name in ("frames", "speech", "waveform")] == [0, 0, 0]


def test_row_groups_are_about_4_megabytes(tmp_path: Path) -> None:
    """Written as soon as they are full, so never more than one row above the mark; the last one holds the rest."""
    shapes = SHAPES | {"frames": [64, 64, 3]}
    manifest = write(tmp_path, {"s1": [50] * 40}, shapes=shapes)
    row = 50 * (64 * 64 * 3 + 2 + 2 * 6 + 2 * PER_FRAME)
    (file,) = shard_files(tmp_path, "s1", "train")
    with pq.ParquetFile(file) as parquet:
        rows = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
        sizes = [parquet.metadata.row_group(index).total_byte_size for index in range(parquet.num_row_groups)]
        metadata = json.loads(parquet.schema_arrow.metadata[b"fedtalk"])
    assert len(rows) > 3 and sum(rows) == manifest.pieces("s1", "train") == 32
    for count, size in zip(rows[:-1], sizes[:-1], strict=True):
        assert ROW_GROUP_BYTES <= count * row < ROW_GROUP_BYTES + row
        assert size < 1.05 * count * row
    assert metadata == {"schema_version": 1, "shapes": shapes}


def test_clients_do_not_share_a_file(tmp_path: Path) -> None:
    write(tmp_path, {"s1": [30, 30, 30], "s10": [30, 30]})
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet"))
    assert names == [f"client={name}-000.parquet" for name in ("s1/test", "s1/train", "s1/val", "s10/train", "s10/val")]
    assert shard_files(tmp_path, "s1", "train") == [str(tmp_path / "client=s1" / "train-000.parquet")]


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
    assert refusal(lambda: load_manifest(missing)) == (
        f"shards folder {missing} does not exist; make it with `fedtalk prepare --out {missing}`"
    )
    assert refusal(lambda: load_manifest(tmp_path)) == (
        f"folder {tmp_path} holds no manifest.json: it was not written by `fedtalk prepare`"
    )


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", "3", "{}", '{"schema_version": 1}', '{"schema_version": 1, "identities": []}', "\x00"],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    assert refusal(lambda: load_manifest(tmp_path)).startswith(f"{tmp_path / 'manifest.json'} is damaged (")


def test_a_manifest_with_a_field_too_many_or_too_few_is_damaged(tmp_path: Path) -> None:
    write(tmp_path, {"s1": [30, 30]})
    path = tmp_path / "manifest.json"
    good = json.loads(path.read_text())
    clip_entry = good["identities"]["s1"][0]
    for tree in (
        good | {"surprise": 1},
        {key: value for key, value in good.items() if key != "shapes"},
        good | {"identities": {"s1": [clip_entry | {"surprise": 1}]}},
        good | {"identities": {"s1": "c0"}},
    ):
        path.write_text(json.dumps(tree))
        assert "is damaged (" in refusal(lambda: load_manifest(tmp_path))


def test_shards_of_another_version_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"s1": [30, 30]})
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 7}))
    assert refusal(lambda: load_manifest(tmp_path)) == f"{path} has schema version 7, this program reads 1"


def test_shards_of_another_autoencoder_are_refused() -> None:
    manifest = new_manifest()
    manifest.check_autoencoder("0123abcd", "models/a")
    message = refusal(lambda: manifest.check_autoencoder("ffff", "models/a"))
    for part in ("'patch'", "0123abcd", "models/a", "ffff", "prepare the shards again"):
        assert part in message


def test_a_single_clip_is_trained_on_only_when_the_unseen_were_named(tmp_path: Path) -> None:
    clips = {"pair": [30, 30], "alone": [30], "guest": [30]}
    assert write(tmp_path / "a", clips).unseen() == ["alone", "guest"]
    named = write(tmp_path / "b", clips, unseen={"guest"})
    assert named.unseen() == ["guest"] and named.clients() == ["pair"]
    assert [piece.clip for piece in read_pieces(tmp_path / "b", named, "alone", "train")] == ["c0"]


def test_clients_that_cannot_be_served_are_refused_with_the_reason(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"pair": [30, 30], "alone": [30], "unseen": [30] * 4}, unseen={"unseen"})
    manifest.check_clients(["pair"])
    manifest.check_clients([])
    messages = [refusal(lambda name=name: manifest.check_clients(["pair", name])) for name in ("s9", "alone", "unseen")]
    assert messages[0] == "client 's9' is not in the shards; they hold alone, pair, unseen"
    assert messages[1].startswith("client 'alone' has 1 clip(s) and none to spare: a client needs two")
    assert messages[2].startswith("client 'unseen' has 4 clip(s) and none to train on: a client needs two")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) - 60 : len(content) - 20] = b"\xff" * 40
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(cut, id="cut"),
        pytest.param(garble, id="garbled"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_text("no parquet"), id="text"),
        pytest.param(Path.unlink, id="lost"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, damage) -> None:
    manifest = write(tmp_path, {"s1": [30, 30]})
    file = tmp_path / "client=s1" / "train-000.parquet"
    damage(file)
    message = refusal(lambda: list(read_pieces(tmp_path, manifest, "s1", "train")))
    assert str(file.parent) in message
    assert len(list(read_pieces(tmp_path, manifest, "s1", "val"))) == 1


def test_a_shard_that_does_not_fit_the_manifest_is_named(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"s1": [30, 30]})
    manifest.shapes = SHAPES | {"frames": [7, 7, 3]}
    assert str(tmp_path / "client=s1") in refusal(lambda: list(read_pieces(tmp_path, manifest, "s1", "train")))


def test_a_split_without_clips_is_no_damage(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"s1": [30, 30]})
    assert list(read_pieces(tmp_path, manifest, "s1", "test")) == []


def test_pieces_of_a_long_clip_join_without_gap_or_overlap(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"s1": [PIECE_FRAMES + 1, 30]})
    first, second = read_pieces(tmp_path, manifest, "s1", "train")
    assert (len(first.frames), len(second.frames)) == (100, 101)
    samples = np.concatenate([first.waveform, second.waveform]).astype(int)
    assert all((b - a) % 30_000 == 1 for a, b in pairwise(samples))
    assert manifest.identities["s1"][0].pieces == 2


def test_every_piece_carries_its_clips_identity(tmp_path: Path) -> None:
    manifest = new_manifest()
    manifest.identity, manifest.identity_dimensions, manifest.speech = "dlib", 2, "models/whisper"
    writer = ShardWriter(tmp_path, manifest, None)
    who = {"c0": [0.6, 0.8], "c1": [1.0, 0.0], "c2": [0.0, -1.0]}
    for name, vector in who.items():
        writer.add("s1", name, clip(PIECE_FRAMES + 1) | {"identity": np.array(vector, np.float32)})
    with pytest.raises(ValueError, match=r"identity of clip 'c3' is \(0,\), not 2"):
        writer.add("s1", "c3", clip(30))
    writer.close()
    loaded = load_manifest(tmp_path)
    assert (loaded.speech, loaded.identity, loaded.identity_dimensions) == ("models/whisper", "dlib", 2)
    for split, name in (("train", "c0"), ("val", "c1"), ("test", "c2")):
        pieces = list(read_pieces(tmp_path, loaded, "s1", split, ("latents",)))
        assert len(pieces) == 2 and {piece.clip for piece in pieces} == {name}
        for piece in pieces:
            assert piece.identity.dtype == np.float32
            assert piece.identity.tolist() == pytest.approx(who[name])


def test_shards_of_before_there_were_identities_still_load(tmp_path: Path) -> None:
    """As version 0.1 wrote them: no such column in the files, no such entries in the manifest."""
    written = write(tmp_path, {"s1": [30, 30]})
    path = tmp_path / "manifest.json"
    tree = json.loads(path.read_text())
    for name in ("speech", "identity", "identity_dimensions", "files"):
        del tree[name]
    written.files = {}
    path.write_text(json.dumps(tree))
    for file in tmp_path.rglob("*.parquet"):
        pq.write_table(pq.read_table(file, partitioning=None).drop_columns("identity"), file)
    manifest = load_manifest(tmp_path)
    assert manifest == written and (manifest.speech, manifest.identity) == ("log-mel", "none")
    (piece,) = read_pieces(tmp_path, manifest, "s1", "train")
    assert piece.identity.shape == (0,) and (piece.frames == clip(30)["frames"]).all()
    assert stored_identity(pq.read_schema(shard_files(tmp_path, "s1", "train")[0])) == []


def test_shards_of_other_features_are_refused() -> None:
    manifest = new_manifest()
    manifest.check_conditions("log-mel", "none", "models/a")
    assert refusal(lambda: manifest.check_conditions("models/whisper", "none", "models/a")) == (
        "shards were prepared with --speech log-mel, but models/a was trained with models/whisper: prepare the shards "
        "again with --speech models/whisper"
    )
    assert "prepared with --identity none, but" in refusal(lambda: manifest.check_conditions("log-mel", "dlib", "a"))
