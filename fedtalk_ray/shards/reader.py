"""Reading shards: one row group in memory at a time, and no byte that is not what the manifest says.

A file's size and the hash of its Parquet footer are in the manifest, and every page carries a checksum. So a file that
was cut, replaced or damaged is refused by name, and a file is never read as a whole to find that out.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedtalk_ray.errors import ShardError
from fedtalk_ray.shards.format import (
    ARRAYS,
    EVERY_COLUMN,
    FOOTAGE,
    IDENTITY,
    LANDMARKS,
    OPTIONAL,
    PLACES,
    FileEntry,
    Manifest,
    Piece,
    entry_of,
)
from fedtalk_ray.shards.storage import beneath, files_in, is_remote, located

OPEN_FILES = 8
"""A reader that jumps between files keeps so many open, and a process so many footers."""

_FOOTERS: OrderedDict[FileEntry, pq.FileMetaData] = OrderedDict()
"""The last footers that this process has parsed, by what the manifest says of their files."""

_CHECKED: set[tuple[str, FileEntry | None, int, tuple[str, ...]]] = set()
"""Row groups whose checksums this process has seen to be right: file, its entry, group, columns."""


@dataclass(frozen=True)
class Group:
    """Some rows of one row group. file: a path or URI. entry: what the manifest says of the file, if anything."""

    file: str
    entry: FileEntry | None
    group: int
    rows: tuple[int, ...]


def shard_files(root: str | Path, client: str, split: str) -> list[str]:
    """The Parquet files of one client's split, sorted; empty when there are none."""
    folder = beneath(root, f"client={client}")
    names = [name for name in files_in(folder) if name.startswith(f"{split}-") and name.endswith(".parquet")]
    return [beneath(folder, name) for name in names]


def list_groups(
    root: str | Path, manifest: Manifest, client: str, split: str, only: Collection[int] | None = None
) -> list[Group]:
    """The row groups of one client's split that hold pieces, in stored order. only: which pieces, else all.

    Reads the files' footers. Raises `ShardError` for files that are missing or not what the manifest says.
    """
    groups, first = [], 0
    for file in _files(root, manifest, client, split):
        entry = manifest.files.get(f"client={client}/{file.rsplit('/', 1)[-1]}")
        with _opened(file, entry, check=False) as parquet:
            counts = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
        for index, count in enumerate(counts):
            rows = tuple(row for row in range(count) if only is None or first + row in only)
            if rows:
                groups.append(Group(file, entry, index, rows))
            first += count
    return groups


class GroupReader:
    """Reads row groups in any order, with the last few files left open."""

    def __init__(self, shapes: dict[str, list[int]], columns: tuple[str, ...]) -> None:
        """columns: those to read, beside identity. Each costs time, a short one too."""
        self._shapes, self._columns = shapes, columns
        self._open: OrderedDict[tuple[str, bool], tuple[pq.ParquetFile, list[str]]] = OrderedDict()

    def read(self, group: Group) -> list[Piece]:
        """The group's pieces; their arrays are views on what was read. Raises `ShardError`, naming the file.

        A group's checksums are looked at once in a process: they take longer than the reading itself.
        """
        seen = (group.file, group.entry, group.group, self._columns)
        try:
            parquet, names = self._file(group, check=seen not in _CHECKED)
            # Decoding is copying here: handing it to threads costs more than they save.
            table = parquet.read_row_group(group.group, columns=names, use_threads=False)
            _CHECKED.add(seen)
            cells = {name: _cells(table.column(name)) for name in names}
            return [
                decode_row({name: values[row] for name, values in cells.items()}, self._shapes) for row in group.rows
            ]
        except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
            raise ShardError(f"shard {group.file} cannot be read: {' '.join(str(error).split())}") from error

    def close(self) -> None:
        for parquet, _ in self._open.values():
            parquet.close(force=True)
        self._open.clear()

    def _file(self, group: Group, check: bool) -> tuple[pq.ParquetFile, list[str]]:
        """The group's file, and the names of the columns to read of it."""
        key = (group.file, check)
        if key not in self._open:
            parquet = _opened(group.file, group.entry, check)
            stored = parquet.schema_arrow
            names = [
                *(name for name in self._columns if name not in OPTIONAL or name in stored.names),
                *stored_identity(stored),
            ]
            self._open[key] = parquet, names
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1][0].close(force=True)
        self._open.move_to_end(key)
        return self._open[key]


def read_pieces(
    root: str | Path,
    manifest: Manifest,
    client: str,
    split: str,
    columns: tuple[str, ...] = EVERY_COLUMN,
    only: Collection[int] | None = None,
) -> Iterator[Piece]:
    """Pieces in stored order, one row group in memory at a time; of the bytes columns only the named ones are read.

    only: the positions of the pieces to read, else all.
    """
    reader = GroupReader(manifest.shapes, ("client", "clip", "begin", *columns, *((FOOTAGE,) * (PLACES in columns))))
    try:
        for group in list_groups(root, manifest, client, split, only):
            yield from reader.read(group)
    finally:
        reader.close()


def stored_identity(schema: pa.Schema) -> list[str]:
    """The identity column's name, or nothing for a file of an older version."""
    return [IDENTITY] if IDENTITY in schema.names else []


def decode_row(row: dict[str, Any], shapes: dict[str, list[int]]) -> Piece:
    """A row with its bytes as arrays; columns that are not there are empty, numbers 0."""
    values: dict[str, Any] = {name: row.get(name) or "" for name in ("client", "clip", FOOTAGE)}
    values |= {
        name: np.frombuffer(row.get(name, b""), dtype).reshape(-1, *shapes[name]) for name, dtype in ARRAYS.items()
    }

    def floats(name: str, *shape: int) -> np.ndarray:
        return np.frombuffer(row.get(name, b""), np.float32).reshape(-1, *shape)

    begin, identity = row.get("begin", 0), floats(IDENTITY)
    return Piece(
        begin=begin, identity=identity, landmarks=floats(LANDMARKS, 68, 2), places=floats(PLACES, 2, 3), **values
    )


def _cells(column: pa.ChunkedArray) -> list[Any]:
    """A column's values; bytes as views, because as Python bytes they would be copied."""
    if not pa.types.is_binary(column.type):
        return list(column.to_pylist())
    cells: list[Any] = []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        bounds = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        view = memoryview(data) if data is not None else memoryview(b"")
        cells += [view[begin:end] for begin, end in pairwise(bounds)]
    return cells


def _files(root: str | Path, manifest: Manifest, client: str, split: str) -> list[str]:
    files = shard_files(root, client, split)
    found = {file.rsplit("/", 1)[-1] for file in files}
    first = f"{split}-000.parquet"  # the writer makes one file of a split
    if first not in found and (f"client={client}/{first}" in manifest.files or manifest.pieces(client, split)):
        raise ShardError(
            f"{beneath(root, f'client={client}')} holds no {first} though the manifest lists "
            f"{manifest.pieces(client, split)} piece(s); prepare the shards again"
        )
    return files


def _opened(file: str, entry: FileEntry | None, check: bool) -> pq.ParquetFile:
    """An open file that is what the manifest says. check: the pages' checksums too. Raises `ShardError`."""
    system, path = located(file)
    try:
        if entry is not None:
            found = entry_of(system, path)
            if found.bytes != entry.bytes:
                raise ShardError(
                    f"shard {file} has {found.bytes:,} bytes and its manifest says {entry.bytes:,}: it was cut or "
                    "replaced; copy the shards again, or prepare them again"
                )
            if found != entry:
                raise ShardError(
                    f"shard {file} has changed since its manifest was written; copy the shards again, or prepare them "
                    "again"
                )
        footer = None if entry is None else _FOOTERS.get(entry)
        # Across a network, columns are fetched side by side and ahead; from a disk that is a third slower than reading.
        parquet = pq.ParquetFile(
            path, metadata=footer, filesystem=system, page_checksum_verification=check, pre_buffer=is_remote(file)
        )
        if entry is not None and footer is None:
            _FOOTERS[entry] = parquet.metadata
            if len(_FOOTERS) > OPEN_FILES:
                _FOOTERS.popitem(last=False)
        return parquet
    except (pa.ArrowInvalid, OSError) as error:
        raise ShardError(f"shard {file} cannot be read: {' '.join(str(error).split())}") from error
