"""Prepared clips on disk: Parquet files, one partition per client, and a manifest that says what they hold.

    SHARDS/manifest.json
    SHARDS/client=s1/train-000.parquet   val-000.parquet   test-000.parquet
    SHARDS/rejects.csv

A row is a piece of one clip, at most `PIECE_FRAMES` long. Arrays are raw bytes columns (`Piece` says shape and dtype of
each; the shapes are in the manifest and in each file's metadata): pyarrow reads them ten times faster than tensor
columns. `identity` is one vector a clip, repeated in each of its pieces. A split is a property of a clip, so no window
of a held-out clip was ever trained on.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedtalk_ray.errors import ShardError

SCHEMA_VERSION = 1
PIECE_FRAMES = 200
"""Longer clips are cut into pieces of this length (8 s), so that memory does not grow with a clip."""
ROW_GROUP_BYTES = 4 << 20
SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"

ARRAYS = {"frames": np.uint8, "latents": np.float16, "speech": np.float16, "waveform": np.int16}
"""Bytes columns that hold something for every frame, and their dtypes."""
IDENTITY = "identity"
"""The bytes column of the clip's identity embedding, float32; shards of older versions have none."""


@dataclass
class Piece:
    """One row. T frames of one clip.

    frames: uint8 [T, S, S, 3]. latents: float16 [T, C, h, w], scaled. speech: float16 [T, hops, mel].
    waveform: int16 [N] at `SAMPLE_RATE`. identity: float32 [D], the clip's embedding, a unit vector; D is 0 where none
    was prepared. A column that was not read is an empty array.
    """

    client: str
    clip: str
    begin: int
    frames: np.ndarray
    latents: np.ndarray
    speech: np.ndarray
    waveform: np.ndarray
    identity: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass
class ClipEntry:
    name: str
    split: str
    frames: int
    pieces: int


@dataclass
class Manifest:
    """What a shard folder holds. `shapes` are per-frame shapes of the bytes columns (of one sample for waveform).

    speech and identity: the sources of `data.speech.load_speech_features` and `data.identity_embedding`, "none" for no
    embedding. Their defaults are what shards of older versions hold.
    """

    corpus: str
    frame_size: int
    fps: int
    sample_rate: int
    autoencoder: str
    autoencoder_fingerprint: str
    shapes: dict[str, list[int]]
    identities: dict[str, list[ClipEntry]] = field(default_factory=dict)
    rejected: int = 0
    speech: str = "log-mel"
    identity: str = "none"
    identity_dimensions: int = 0
    schema_version: int = SCHEMA_VERSION

    def clients(self) -> list[str]:
        """Identities that can be clients: they have clips to train on and others to score themselves with."""
        return sorted(name for name in self.identities if self.frames(name, "train") and self.frames(name, "val"))

    def unseen(self) -> list[str]:
        """Identities of which nothing may be trained on: all their clips are in the test split."""
        return sorted(name for name, clips in self.identities.items() if all(clip.split == "test" for clip in clips))

    def frames(self, client: str, split: str) -> int:
        return sum(clip.frames for clip in self.identities[client] if clip.split == split)

    def pieces(self, client: str, split: str) -> int:
        return sum(clip.pieces for clip in self.identities[client] if clip.split == split)

    def check_autoencoder(self, fingerprint: str, where: str) -> None:
        """Raises `ShardError` when these shards' latents come from another encoder than the one at `where`."""
        if fingerprint != self.autoencoder_fingerprint:
            raise ShardError(
                f"shards were encoded by autoencoder {self.autoencoder!r} ({self.autoencoder_fingerprint}), but "
                f"{where} holds another one ({fingerprint}): prepare the shards again with --autoencoder {where}"
            )

    def check_conditions(self, speech: str, identity: str, where: str) -> None:
        """Raises `ShardError` when the model at `where` hears other features or knows people by another embedding."""
        for option, stored, wanted in (("speech", self.speech, speech), ("identity", self.identity, identity)):
            if stored != wanted:
                raise ShardError(
                    f"shards were prepared with --{option} {stored}, but {where} was trained with {wanted}: prepare "
                    f"the shards again with --{option} {wanted}"
                )

    def check_clients(self, names: list[str]) -> None:
        """Raises `ShardError` for the first name that cannot be a client, with the reason."""
        able = set(self.clients())
        for name in names:
            if name not in self.identities:
                raise ShardError(
                    f"client {name!r} is not in the shards; they hold {', '.join(sorted(self.identities))}"
                )
            if name not in able:
                count = len(self.identities[name])
                raise ShardError(
                    f"client {name!r} has {count} clip(s) and none to {'train on' if count > 1 else 'spare'}: a client "
                    "needs two, one to train on and one held out to score itself"
                )


def split_of(index: int) -> str:
    """The split of a client's index-th usable clip: the second and third of every ten are held out."""
    return {1: "val", 2: "test"}.get(index % 10, "train")


def load_manifest(root: str | Path) -> Manifest:
    """Reads and checks `SHARDS/manifest.json`. Raises `ShardError`."""
    path = Path(root) / MANIFEST
    if not Path(root).is_dir():
        raise ShardError(f"shards folder {root} does not exist; make it with `fedtalk prepare --out {root}`")
    if not path.is_file():
        raise ShardError(f"folder {root} holds no {MANIFEST}: it was not written by `fedtalk prepare`")
    try:
        tree = json.loads(path.read_text())
        if tree["schema_version"] != SCHEMA_VERSION:
            raise ShardError(f"{path} has schema version {tree['schema_version']}, this program reads {SCHEMA_VERSION}")
        tree["identities"] = {who: [ClipEntry(**clip) for clip in clips] for who, clips in tree["identities"].items()}
        return Manifest(**tree)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(
            f"{path} is damaged ({error.__class__.__name__}: {error}); prepare the shards again"
        ) from error


def shard_files(root: str | Path, client: str, split: str) -> list[str]:
    """The Parquet files of one client's split, sorted; empty when there are none."""
    return sorted(str(path) for path in (Path(root) / f"client={client}").glob(f"{split}-*.parquet"))


def read_pieces(
    root: str | Path, manifest: Manifest, client: str, split: str, columns: tuple[str, ...] = tuple(ARRAYS)
) -> Iterator[Piece]:
    """Pieces in stored order, one row group in memory at a time; only the named bytes columns and identity are read."""
    files = shard_files(root, client, split)
    if not files and manifest.pieces(client, split):
        raise ShardError(
            f"{Path(root) / f'client={client}'} holds no {split}-*.parquet though the manifest lists "
            f"{manifest.pieces(client, split)} piece(s); prepare the shards again"
        )
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                names = ["client", "clip", "begin", *columns, *stored_identity(parquet.schema_arrow)]
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group, columns=names)
                    for row in table.to_pylist():
                        yield decode_row(row, manifest.shapes)
        except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
            raise ShardError(f"shard {file} cannot be read: {' '.join(str(error).split())}") from error


def stored_identity(schema: pa.Schema) -> list[str]:
    """The identity column's name, or nothing for a file of an older version."""
    return [IDENTITY] if IDENTITY in schema.names else []


def decode_row(row: dict, shapes: dict[str, list[int]]) -> Piece:
    arrays = {
        name: np.frombuffer(row.get(name, b""), dtype).reshape(-1, *shapes[name]) for name, dtype in ARRAYS.items()
    }
    identity = np.frombuffer(row.get(IDENTITY, b""), np.float32)
    return Piece(row["client"], row["clip"], row["begin"], **arrays, identity=identity)


class ShardWriter:
    """Writes clips, client after client, into a folder that the caller renames into place.

    Clips of one client must arrive together. The caller names clients of which nothing may be trained on (`unseen`);
    with None those with a single usable clip become that, because they could not score themselves on another.
    """

    def __init__(self, folder: Path, manifest: Manifest, unseen: set[str] | None) -> None:
        self._folder, self._manifest = folder, manifest
        self._unseen, self._single_is_unseen = unseen or set(), unseen is None
        self._client: str | None = None
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._rows: dict[str, list[dict]] = {}
        metadata = {"fedtalk": json.dumps({"schema_version": SCHEMA_VERSION, "shapes": manifest.shapes})}
        self._schema = pa.schema(
            [("client", pa.string()), ("clip", pa.string()), ("begin", pa.int64())]
            + [(name, pa.binary()) for name in (*ARRAYS, IDENTITY)],
            metadata=metadata,
        )

    def add(self, client: str, clip: str, arrays: dict[str, np.ndarray]) -> None:
        """One whole clip: arrays as in `Piece`, for all its frames; "identity" may be left out when there is none."""
        if client != self._client:
            self._close_client()
            if client in self._manifest.identities:
                raise ValueError(f"clips of client {client!r} arrived apart; its first ones would be lost")
            self._client = client
            self._manifest.identities[client] = []
        clips = self._manifest.identities[client]
        split = "test" if client in self._unseen else split_of(len(clips))
        frames = len(arrays["frames"])
        identity = np.asarray(arrays.get(IDENTITY, ()), np.float32)
        if identity.shape != (self._manifest.identity_dimensions,):
            raise ValueError(f"identity of clip {clip!r} is {identity.shape}, not {self._manifest.identity_dimensions}")
        samples = self._manifest.sample_rate // self._manifest.fps
        # Equal pieces: a short rest could not hold a window.
        bounds = np.linspace(0, frames, -(-frames // PIECE_FRAMES) + 1).astype(int).tolist()
        for begin, end in itertools.pairwise(bounds):
            row = {name: arrays[name][begin:end].astype(kind).tobytes() for name, kind in ARRAYS.items()}
            row["waveform"] = arrays["waveform"][begin * samples : end * samples].astype(np.int16).tobytes()
            row[IDENTITY] = identity.tobytes()
            self._add_row(split, {"client": client, "clip": clip, "begin": begin, **row})
        clips.append(ClipEntry(clip, split, frames, len(bounds) - 1))

    def close(self) -> Manifest:
        """Finishes the files and writes the manifest."""
        self._close_client()
        (self._folder / MANIFEST).write_text(json.dumps(asdict(self._manifest), indent=1))
        return self._manifest

    def _add_row(self, split: str, row: dict) -> None:
        rows = self._rows.setdefault(split, [])
        rows.append(row)
        if sum(len(value) for kept in rows for value in kept.values() if isinstance(value, bytes)) >= ROW_GROUP_BYTES:
            self._flush(split)

    def _flush(self, split: str) -> None:
        rows = self._rows.pop(split, [])
        if not rows:
            return
        if split not in self._writers:
            path = self._folder / f"client={self._client}" / f"{split}-000.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Latents and pictures are noise to a general compressor: it would cost time and save little.
            self._writers[split] = pq.ParquetWriter(path, self._schema, compression="none", use_dictionary=False)
        self._writers[split].write_table(pa.Table.from_pylist(rows, schema=self._schema))

    def _close_client(self) -> None:
        for split in list(self._rows):
            self._flush(split)
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        if self._client is None:
            return
        clips = self._manifest.identities[self._client]
        if self._single_is_unseen and len(clips) == 1 and clips[0].split == "train":
            folder = self._folder / f"client={self._client}"
            (folder / "train-000.parquet").rename(folder / "test-000.parquet")
            clips[0].split = "test"
