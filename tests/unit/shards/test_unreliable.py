"""Corrupted copies: who is touched, what is touched, and that nothing else is, byte for byte."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.commands.cli import main
from fedtalk_ray.errors import ShardError
from fedtalk_ray.shards.format import Manifest, Piece, ShardWriter, load_manifest
from fedtalk_ray.shards.reader import read_pieces
from fedtalk_ray.shards.unreliable import MIXED, SHUFFLED, UNRELIABLE, WRONG_SOUND, corrupt_shards, unreliable_clients

SHAPES = {"frames": [2, 2, 3], "latents": [1, 2, 2], "speech": [2, 3], "waveform": []}
PER_FRAME = 4


def write(folder: Path, clients: dict[str, list[int]], unseen: tuple[str, ...] = ()) -> Manifest:
    """Clips whose every number names its client, clip and frame, so that it can be told where a frame came from."""
    folder.mkdir(parents=True)
    manifest = Manifest("folder", 2, 25, 25 * PER_FRAME, "patch", "x", SHAPES, identity="who", identity_dimensions=1)
    writer = ShardWriter(folder, manifest, set(unseen))
    for who, lengths in enumerate(clients.values()):
        for number, length in enumerate(lengths):
            mark = np.arange(length) + 300 * number + 3000 * who
            arrays = {
                "frames": np.stack([mark // 256, mark % 256, mark * 0], -1)[:, None, None].repeat(2, 1).repeat(2, 2),
                "latents": mark[:, None, None, None] / 16 + np.zeros((1, 1, 2, 2)),
                "speech": mark[:, None, None] / 16 + np.zeros((1, 2, 3)),
                "waveform": np.repeat(mark, PER_FRAME),
                "identity": np.array([who], np.float32),
            }
            writer.add(list(clients)[who], f"clip{number}", arrays)
    (folder / "rejects.csv").write_text("identity,clip\n")
    return writer.close()


def marks(piece: Piece) -> dict[str, np.ndarray]:
    """Client, clip and frame of every frame of the pictures, the latents, the speech and the waveform."""
    frames = piece.frames[:, 0, 0].astype(int)
    return {
        "frames": frames[:, 0] * 256 + frames[:, 1],
        "latents": piece.latents[:, 0, 0, 0].astype(float) * 16,
        "speech": piece.speech[:, 0, 0].astype(float) * 16,
        "waveform": piece.waveform[::PER_FRAME].astype(int),
    }


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """One client with a clip of two pieces (205 frames) that donors of 20 frames must fill."""
    clients = {name: [20, 20, 20, 20, 20] for name in "abcd"} | {"long": [205, 20, 20, 30]}
    write(tmp_path / "clean", clients, unseen=())
    return tmp_path / "clean"


def pieces(folder: Path, client: str, split: str = "train") -> list[Piece]:
    return list(read_pieces(folder, load_manifest(folder), client, split))


@pytest.mark.parametrize("split", ["train", "val"])
def test_shuffled_frames_keep_the_sound_and_every_picture_with_its_latent(clean: Path, tmp_path: Path, split) -> None:
    corrupt_shards(clean, tmp_path / "bad", share=1, kinds=[SHUFFLED])
    for before, after in zip(pieces(clean, "long", split), pieces(tmp_path / "bad", "long", split), strict=True):
        old, new = marks(before), marks(after)
        assert sorted(new["frames"]) == sorted(old["frames"]) and (new["frames"] != old["frames"]).any()
        np.testing.assert_array_equal(new["latents"], np.float16(new["frames"] / 16).astype(float) * 16)
        assert after.speech.tobytes() == before.speech.tobytes()
        assert after.waveform.tobytes() == before.waveform.tobytes()


def test_wrong_sound_is_one_other_clients_and_leaves_the_pictures(clean: Path, tmp_path: Path) -> None:
    corrupt_shards(clean, tmp_path / "bad", share=1, kinds=[WRONG_SOUND])
    givers = set()
    for before, after in zip(pieces(clean, "long"), pieces(tmp_path / "bad", "long"), strict=True):
        assert after.frames.tobytes() == before.frames.tobytes()
        assert after.latents.tobytes() == before.latents.tobytes()
        assert len(after.speech) == len(before.speech) and len(after.waveform) == len(before.waveform)
        assert after.identity.tolist() == before.identity.tolist() == [4]
        sound = marks(after)["waveform"]
        givers |= set(sound // 3000)
        # Features and waveform are of the same frames: the donor's 20, again and again, without a break at a piece.
        np.testing.assert_array_equal(marks(after)["speech"], np.float16(sound / 16).astype(float) * 16)
        np.testing.assert_array_equal(sound % 300, np.arange(before.begin, before.begin + len(sound)) % 20)
    assert len(givers) == 1 and givers != {4}


def test_mixed_identities_hold_several_others_whole(clean: Path, tmp_path: Path) -> None:
    corrupt_shards(clean, tmp_path / "bad", share=1, kinds=[MIXED])
    people = Counter()
    for client, own in (("a", 0), ("long", 4)):
        for piece in pieces(tmp_path / "bad", client):
            found = marks(piece)
            np.testing.assert_array_equal(found["frames"], found["waveform"])
            np.testing.assert_array_equal(found["latents"], found["speech"])
            givers = set(found["frames"] // 3000)
            assert len(givers) == 1 and own not in givers
            assert piece.identity.tolist() == list(givers), "the embedding goes with the face"
            people[client, givers.pop()] += 1
    assert len([1 for client, _ in people if client == "a"]) == 3, "each of the three training clips has another face"
    for client in "abcd":
        for piece in pieces(tmp_path / "bad", client, "val"):
            assert set(marks(piece)["frames"] % 3000 // 300) == {1}, "what is held out comes from what is held out"


def test_the_seed_or_the_caller_chooses_and_the_command_says_whom(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["corrupt", "--shards", str(clean), "--out", str(tmp_path / "bad"), "--who", "b, d"])
    victims = unreliable_clients(tmp_path / "bad")
    assert set(victims) == {"b", "d"} and set(victims.values()) == {SHUFFLED, WRONG_SOUND}
    assert f"b ({victims['b']})" in capsys.readouterr().out
    before, after = files(clean), files(tmp_path / "bad")
    changed = {name for name, content in before.items() if after[name] != content}
    touched = {f"client={who}/{split}-000.parquet" for who in "bd" for split in ("train", "val")}
    assert changed == touched | {"manifest.json"} and set(after) - set(before) == {UNRELIABLE}
    chosen = [corrupt_shards(clean, tmp_path / f"some{seed}", share=0.4, seed=seed) for seed in range(4)]
    assert len({tuple(sorted(victims)) for victims in chosen}) > 1


def test_what_cannot_be_corrupted_is_refused(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corrupt_shards(clean, tmp_path / "bad")
    with pytest.raises(ShardError, match="corrupted already"):
        corrupt_shards(tmp_path / "bad", tmp_path / "worse")
    with pytest.raises(ShardError, match="or are the output"):
        corrupt_shards(clean, clean, overwrite=True)
    with pytest.raises(ShardError, match=r"share 0\.05 of 5 clients corrupts nobody"):
        corrupt_shards(clean, tmp_path / "none", share=0.05)
    for option, value, why in (("--who", "b,z", "'z' is no client"), ("--kinds", "noise", "kind 'noise' is unknown")):
        with pytest.raises(SystemExit):
            main(["corrupt", "--shards", str(clean), "--out", str(tmp_path / "none"), option, value])
        assert why in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
