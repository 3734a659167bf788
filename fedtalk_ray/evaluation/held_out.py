"""Which clips are measured, and what each is measured with: another sentence's sound, another real clip."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedtalk_ray.data.shard_reader import read_pieces
from fedtalk_ray.data.shards import ARRAYS, Manifest, Piece
from fedtalk_ray.errors import ShardError

GROUPS = ("seen", "unseen")
"""Identities that took part, and those nobody trained on."""

SPLITS = {"val": ("val",), "test": ("test",), "held-out": ("val", "test")}
"""What may be measured: nothing was trained on val either, clients only scored themselves on it."""


@dataclass(frozen=True)
class HeldOut:
    """One clip to measure. other_sound: (identity, clip) whose sound drives the control row."""

    group: str
    identity: str
    clip: str
    other_sound: tuple[str, str]


@dataclass(frozen=True)
class Clip:
    """A `HeldOut` with its data: its first piece, and the other sound as int16, as long as its own."""

    entry: HeldOut
    piece: Piece
    other_sound: np.ndarray


def choose_clips(
    manifest: Manifest, split: str, limit: int | None = None, excluded: Collection[str] = ()
) -> list[HeldOut]:
    """Every clip of the split (of `SPLITS`), identity after identity; the next clip of its group is the other sound.

    limit: at most so many clips a group, of as many identities as possible. excluded: identities of whom no clip is
    taken. A clip is measured alike with or without both. Raises `ShardError` where the split is empty, or a group has
    one clip and so no other sound.
    """
    chosen = []
    unseen = set(manifest.unseen())
    for group in GROUPS:
        names = [name for name in sorted(manifest.identities) if (name in unseen) == (group == "unseen")]
        clips = [
            (name, turn, entry.name)
            for name in names
            for turn, entry in enumerate(entry for entry in manifest.identities[name] if entry.split in SPLITS[split])
        ]
        if len(clips) == 1:
            raise ShardError(
                f"the shards hold one held-out clip of {group} identities (split {split}): its lips cannot be "
                "compared with another sentence's sound; prepare more clips"
            )
        counted = [clip for clip in clips if clip[0] not in excluded]
        kept = set(sorted(counted, key=lambda clip: (clip[1], clip[0]))[:limit])
        for index, clip in enumerate(clips):
            if clip in kept:
                other = clips[(index + 1) % len(clips)]
                chosen.append(HeldOut(group, clip[0], clip[2], (other[0], other[2])))
    if not chosen:
        raise ShardError(f"the shards hold no clip in split {split!r}")
    return chosen


def read_clips(shards: str | Path, manifest: Manifest, split: str, entries: list[HeldOut]) -> Iterator[Clip]:
    """The clips of `entries` in their order, one in memory at a time; all the other sounds are held."""
    sounds: dict[tuple[str, str], np.ndarray] = {}
    wanted = {entry.other_sound for entry in entries}
    for identity in sorted({identity for identity, _ in wanted}):
        for piece in _read(shards, manifest, identity, split, ("waveform",)):
            if piece.begin == 0 and (identity, piece.clip) in wanted:
                sounds[identity, piece.clip] = piece.waveform
    by_name = {(entry.identity, entry.clip): entry for entry in entries}
    for identity in dict.fromkeys(entry.identity for entry in entries):
        for piece in _read(shards, manifest, identity, split):
            entry = by_name.get((identity, piece.clip))
            if entry is not None and piece.begin == 0:
                yield Clip(entry, piece, np.resize(sounds[entry.other_sound], len(piece.waveform)))


def _read(
    shards: str | Path, manifest: Manifest, identity: str, split: str, columns: tuple[str, ...] = tuple(ARRAYS)
) -> Iterator[Piece]:
    for part in SPLITS[split]:
        if manifest.pieces(identity, part):
            yield from read_pieces(shards, manifest, identity, part, columns)


def another_real_clip(shards: str | Path, manifest: Manifest, identity: str, clip: str) -> np.ndarray | None:
    """Frames uint8 [T, S, S, 3] of the person's next clip, whatever its split; None where there is no other."""
    entries = manifest.identities[identity]
    index = next(number for number, entry in enumerate(entries) if entry.name == clip)
    other = entries[(index + 1) % len(entries)]
    if other.name == clip:
        return None
    pieces = read_pieces(shards, manifest, identity, other.split, ("frames",))
    return next(piece.frames for piece in pieces if piece.clip == other.name and piece.begin == 0)
