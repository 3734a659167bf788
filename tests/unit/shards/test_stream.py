"""Streaming without Ray: what comes, in which order, how much is read, and what is refused.

The two readers against each other are in tests/ray/test_data.py.
"""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.errors import ShardError
from fedtalk_ray.shards import stream as streaming
from fedtalk_ray.shards.format import Manifest, ShardWriter, load_manifest
from fedtalk_ray.shards.population import Portion
from fedtalk_ray.shards.reader import list_groups, read_pieces
from fedtalk_ray.shards.stream import shuffled, stream_batches
from fedtalk_ray.slot_settings import StreamConfig
from tests.unit.shards.random_clips import SHAPES, clip, new_manifest

LARGE = SHAPES | {"frames": [64, 64, 3]}
"""Frames of 12 KiB, so that a few clips fill several row groups."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One client with 30 clips of 100 frames: 24 pieces to train on, some to a row group."""
    root = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(root, new_manifest(LARGE), None)
    for number in range(30):
        writer.add("s1", f"c{number:02d}", clip(100, number, LARGE))
    writer.close()
    return root


def batches(root: Path, *, windows: int = 48, seed: int = 0, pieces: frozenset[int] | None = None, **stream: object):
    return stream_batches(
        root,
        load_manifest(root),
        [Portion("s1", pieces)],
        window=4,
        windows=windows,
        batch_size=3,
        seed=seed,
        stream=StreamConfig(**stream),
    )


def stretches(root: Path) -> dict[bytes, int]:
    """Every stretch of four frames of the training clips -> which piece it is of."""
    found = {}
    for place, piece in enumerate(read_pieces(root, load_manifest(root), "s1", "train")):
        latents = piece.latents.astype(np.float32)
        found |= {latents[begin : begin + 4].tobytes(): place for begin in range(97)}
    return found


def places(root: Path, **options) -> list[int]:
    """Which piece each streamed window is of."""
    known = stretches(root)
    return [known[window.numpy().tobytes()] for batch in batches(root, **options) for window in batch.latents]


def test_every_piece_gives_the_same_number_of_windows_and_only_of_its_own_frames(shards: Path) -> None:
    found = Counter(places(shards))
    assert found == dict.fromkeys(range(24), 2)
    assert set(places(shards, pieces=frozenset({3, 4, 17}), windows=30)) == {3, 4, 17}


def test_windows_come_shuffled_across_the_client(shards: Path) -> None:
    order = places(shards, windows=240, shuffle_windows=64)
    runs = sum(a != b for a, b in pairwise(order))
    assert runs > 150, "neighbours are mostly of different pieces"
    assert len(set(order[:24])) > 6


def test_the_seed_fixes_the_batches(shards: Path) -> None:
    def all_of(seed: int) -> bytes:
        return b"".join(batch.latents.numpy().tobytes() for batch in batches(shards, seed=seed))

    assert all_of(1) == all_of(1) != all_of(2)


def test_a_budget_that_cannot_be_held_is_refused_with_the_arithmetic(shards: Path) -> None:
    with pytest.raises(ShardError, match=r"stream.memory_mb is 16, and \d+ are needed .* lower stream.shuffle_windows"):
        next(batches(shards, memory_mb=16, shuffle_windows=1_000_000))


def test_the_reader_is_chosen_by_place_and_size(shards: Path) -> None:
    groups = list_groups(shards, load_manifest(shards), "s1", "train")
    size = sum({group.file: group.entry.bytes for group in groups if group.entry}.values()) / 2**20

    def chosen(root: object, **options: object) -> str:
        return streaming.chosen_reader(str(root), groups, StreamConfig(**options))

    assert chosen(shards) == "direct" and chosen("s3://bucket/shards") == "ray"
    assert chosen(shards, direct_mb=int(size) - 1) == "ray" and chosen(shards, direct_mb=int(size) + 1) == "direct"
    assert chosen(shards, reader="ray") == "ray" and chosen("s3://bucket/shards", reader="direct") == "direct"


def test_shards_behind_a_uri_are_read_like_local_ones(shards: Path) -> None:
    near = [batch.latents.numpy().tobytes() for batch in batches(shards)]
    far = [batch.latents.numpy().tobytes() for batch in batches(f"file://{shards}", reader="direct")]  # type: ignore[arg-type]
    assert near == far


@pytest.mark.parametrize(("count", "held"), [(0, 3), (5, 20), (60, 7), (9, 1)])
def test_shuffling_loses_and_repeats_nothing_and_holds_a_few(count: int, held: int) -> None:
    drawn = 0

    def source():
        nonlocal drawn
        for number in range(count):
            drawn += 1
            yield {"n": np.array(number)}

    given_out = []
    for window in shuffled(source(), held, np.random.default_rng(0)):
        assert drawn - len(given_out) <= held + 1
        given_out.append(int(window["n"]))
    assert sorted(given_out) == list(range(count))


def test_a_shard_that_was_cut_replaced_or_damaged_is_named(tmp_path: Path) -> None:
    def fresh(name: str) -> tuple[Manifest, Path]:
        writer = ShardWriter(tmp_path / name, new_manifest(), None)
        (tmp_path / name).mkdir()
        for number in range(3):
            writer.add("s1", f"c{number}", clip(30, number + len(name)))
        return writer.close(), tmp_path / name / "client=s1" / "train-000.parquet"

    def refusal(root: Path) -> str:
        with pytest.raises(ShardError) as caught:
            list(read_pieces(root, load_manifest(root), "s1", "train"))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    _, file = fresh("a")
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-100])
    assert refusal(tmp_path / "a").startswith(f"shard {file} has {size - 100:,} bytes and its manifest says {size:,}:")
    # A byte of the footer, and one of the data, whose page has a checksum.
    for name, place, says in (("bb", size - 20, "has changed since"), ("ccc", size // 2, "cannot be read: ")):
        _, file = fresh(name)
        data = bytearray(file.read_bytes())
        data[place] ^= 0xFF
        file.write_bytes(data)
        assert refusal(tmp_path / name).startswith(f"shard {file} {says}")
