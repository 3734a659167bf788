"""Prepared clips on disk: Parquet files, one partition per client, and a manifest that says what they hold.

    SHARDS/manifest.json
    SHARDS/client=s1/train-000.parquet   val-000.parquet   test-000.parquet
    SHARDS/rejects.csv

A row is a piece of one clip, at most `PIECE_FRAMES` long. Arrays are raw bytes columns (`Piece` says shape and dtype of
each; the shapes are in the manifest and in each file's metadata): pyarrow reads them ten times faster than tensor
columns. `identity` is one vector a clip, repeated in each of its pieces. A split is a property of a clip, so no window
of a held-out clip was ever trained on.
"""

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from fedtalk_ray.errors import ShardError
from fedtalk_ray.shards.storage import beneath, is_folder, located

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
LANDMARKS = "landmarks"
"""The bytes column of each frame's 68 points, float32 [68, 2] (`media.lips.face_landmarks`); shards of older versions
have none."""
PLACES = "places"
"""The bytes column of where each frame's crop lies in its picture, float32 [2, 3] (`media.framing`);
shards of older versions have none."""
EVERY_COLUMN = (*ARRAYS, LANDMARKS, PLACES)
"""All bytes columns that hold something for every frame."""
FOOTAGE = "footage"
"""The text column that says which part of which file the clip's pictures are (`media.excerpt`); "" for a drawn clip,
whose crops are its pictures, and no column in shards of older versions."""
OPTIONAL = (LANDMARKS, PLACES, FOOTAGE)
"""Columns that shards of older versions do not have."""


@dataclass
class Piece:
    """One row. T frames of one clip.

    frames: uint8 [T, S, S, 3]. latents: float16 [T, C, h, w], scaled. speech: float16 [T, hops, mel].
    waveform: int16 [N] at `SAMPLE_RATE`. identity: float32 [D], the clip's embedding, a unit vector; D is 0 where none
    was prepared. landmarks: float32 [T, 68, 2], (x, y) in fractions of the crop's side. places: float32 [T, 2, 3], from
    fractions of the crop's side to pixels of its picture. footage: where those pictures are. A column that was not
    read, or that the shards do not have, is an empty array, an empty text or 0.
    """

    client: str
    clip: str
    begin: int
    frames: np.ndarray
    latents: np.ndarray
    speech: np.ndarray
    waveform: np.ndarray
    identity: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    landmarks: np.ndarray = field(default_factory=lambda: np.zeros((0, 68, 2), np.float32))
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, 2, 3), np.float32))
    footage: str = ""


@dataclass
class ClipEntry:
    name: str
    split: str
    frames: int
    pieces: int


@dataclass(frozen=True)
class FileEntry:
    """One Parquet file as it was written. footer: SHA-256 of its last bytes, which describe all the others."""

    bytes: int
    footer: str


@dataclass
class Manifest:
    """What a shard folder holds. `shapes` are per-frame shapes of the bytes columns (of one sample for waveform).

    files: "client=s1/train-000.parquet" -> its entry; shards of older versions list none, and theirs go unchecked.
    speech and identity: the sources of `media.speech.load_speech_features` and `media.identity_embedding`, "none" for
    no embedding. framing: of the crops (`media.framing`). Their defaults are what shards of older versions hold.
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
    framing: str = "aligned"
    files: dict[str, FileEntry] = field(default_factory=dict)
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

    def check_framing(self, framing: str, where: str) -> None:
        """Raises `ShardError` when the model at `where` wants faces framed in another way."""
        if framing != self.framing:
            raise ShardError(
                f"shards hold {self.framing} crops, but {where} takes {framing} ones: prepare the shards again with "
                "--backbone and the model"
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
    """Reads and checks `SHARDS/manifest.json`. root: a folder or a URI (`shards.storage`). Raises `ShardError`."""
    place = beneath(root, MANIFEST)
    system, path = located(place)
    try:
        if not is_folder(root):
            raise ShardError(f"shards folder {root} does not exist; make it with `fedtalk prepare --out {root}`")
        if not system.get_file_info(path).is_file:
            raise ShardError(f"folder {root} holds no {MANIFEST}: it was not written by `fedtalk prepare`")
        with system.open_input_file(path) as file:
            text = file.read()
    except OSError as error:
        raise ShardError(f"{place} cannot be read: {' '.join(str(error).split())}") from error
    try:
        tree = json.loads(text)
        if tree["schema_version"] != SCHEMA_VERSION:
            raise ShardError(
                f"{place} has schema version {tree['schema_version']}, this program reads {SCHEMA_VERSION}"
            )
        tree["identities"] = {who: [ClipEntry(**clip) for clip in clips] for who, clips in tree["identities"].items()}
        tree["files"] = {name: FileEntry(**entry) for name, entry in tree.get("files", {}).items()}
        return Manifest(**tree)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(
            f"{place} is damaged ({error.__class__.__name__}: {error}); prepare the shards again"
        ) from error


def pieces_of(frames: int) -> int:
    """Into how many pieces a clip of so many frames is cut."""
    return -(-frames // PIECE_FRAMES)


def piece_bounds(frames: int, pieces: int) -> np.ndarray:
    """Where the pieces of a clip begin and end, int [pieces + 1]."""
    return np.linspace(0, frames, pieces + 1).astype(int)


def entry_of(system: FileSystem, path: str) -> FileEntry:
    """What the manifest should say of a file. A file too short to have a footer has all of its bytes hashed."""
    with system.open_input_file(path) as file:
        size = file.size()
        # The last eight bytes of Parquet: the footer's length, then "PAR1".
        ending = file.read_at(8, max(0, size - 8))
        length = int.from_bytes(ending[:4], "little") + 8
        length = length if len(ending) == 8 and length <= size else size
        return FileEntry(size, hashlib.sha256(file.read_at(length, size - length)).hexdigest())


def list_shard_files(folder: Path) -> dict[str, FileEntry]:
    """The entries of all Parquet files in a local shards folder."""
    system, _ = located(folder)
    return {
        str(path.relative_to(folder)): entry_of(system, str(path)) for path in sorted(folder.glob("client=*/*.parquet"))
    }


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
            + [(name, pa.binary()) for name in (*ARRAYS, IDENTITY, LANDMARKS, PLACES)]
            + [(FOOTAGE, pa.string())],
            metadata=metadata,
        )

    def add(
        self,
        client: str,
        clip: str,
        arrays: dict[str, np.ndarray],
        begin: int = 0,
        length: int | None = None,
        footage: str = "",
    ) -> None:
        """One clip, or the part of it that begins at a frame where a piece does; parts arrive in order.

        arrays: as in `Piece`, for all frames of the part; "identity", "landmarks" and "places" may be left out when
        there are none. length: of the whole clip in frames, None where this is all of it. footage: as in `Piece`.
        """
        if client != self._client:
            self._close_client()
            if client in self._manifest.identities:
                raise ValueError(f"clips of client {client!r} arrived apart; its first ones would be lost")
            self._client = client
            self._manifest.identities[client] = []
        clips = self._manifest.identities[client]
        frames = len(arrays["frames"])
        length = frames if length is None else length
        # Equal pieces: a short rest could not hold a window.
        bounds = piece_bounds(length, pieces_of(length))
        if begin == 0:
            split = "test" if client in self._unseen else split_of(len(clips))
            clips.append(ClipEntry(clip, split, length, len(bounds) - 1))
        split = clips[-1].split
        identity = np.asarray(arrays.get(IDENTITY, ()), np.float32)
        if identity.shape != (self._manifest.identity_dimensions,):
            raise ValueError(f"identity of clip {clip!r} is {identity.shape}, not {self._manifest.identity_dimensions}")
        samples = self._manifest.sample_rate // self._manifest.fps
        inside = [bound for bound in bounds.tolist() if begin <= bound <= begin + frames]
        if clips[-1].name != clip or inside[0] != begin or inside[-1] != begin + frames:
            raise ValueError(f"frames {begin} to {begin + frames} of clip {clip!r} are no whole pieces that come next")
        for first, last in itertools.pairwise(inside):
            here = slice(first - begin, last - begin)
            row: dict[str, bytes | str] = {
                name: arrays[name][here].astype(kind).tobytes() for name, kind in ARRAYS.items()
            }
            sound = slice(here.start * samples, here.stop * samples)
            row["waveform"] = arrays["waveform"][sound].astype(np.int16).tobytes()
            row[IDENTITY] = identity.tobytes()
            row |= {name: np.asarray(arrays.get(name, ()), np.float32)[here].tobytes() for name in (LANDMARKS, PLACES)}
            row[FOOTAGE] = footage
            self._add_row(split, {"client": client, "clip": clip, "begin": first, **row})

    def close(self) -> Manifest:
        """Finishes the files and writes the manifest."""
        self._close_client()
        self._manifest.files = list_shard_files(self._folder)
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
            self._writers[split] = pq.ParquetWriter(
                path, self._schema, compression="none", use_dictionary=False, write_page_checksum=True
            )
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
