"""Which clips are measured, and what each is measured with: another sentence's sound, another real clip."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from fedtalk_ray.errors import ShardError
from fedtalk_ray.evaluation.clip_figures import Alignment
from fedtalk_ray.media.framing import ALIGNED, Framing
from fedtalk_ray.media.lips import aperture_of
from fedtalk_ray.shards.format import EVERY_COLUMN, LANDMARKS, PLACES, Manifest, Piece
from fedtalk_ray.shards.people import People

GROUPS = SEEN, UNSEEN = "seen", "unseen"
"""Identities that took part, and those nobody trained on."""

SPLITS = {"val": ("val",), "test": ("test",), "held-out": ("val", "test")}
"""What may be measured: nothing was trained on val either, clients only scored themselves on it."""


@dataclass(frozen=True)
class HeldOut:
    """One clip to measure. other_sound: (identity, clip) whose sound drives the control row; None without another.

    dubbed_with: another sentence, the person's own where there is one, that the clip's pictures are to say.
    """

    group: str
    identity: str
    clip: str
    other_sound: tuple[str, str] | None
    dubbed_with: tuple[str, str] | None = None


@dataclass(frozen=True)
class Clip:
    """A `HeldOut` with its data: its first piece, and the other sound as int16, as long as its own, if any.

    dubbed_with: the sound int16 of the sentence to be said, and how its own lips moved, float32 [T].
    """

    entry: HeldOut
    piece: Piece
    other_sound: np.ndarray | None
    dubbed_with: tuple[np.ndarray, np.ndarray] | None = None


def choose_clips(
    manifest: Manifest, split: str, limit: int | None = None, excluded: Collection[str] = ()
) -> list[HeldOut]:
    """Every clip of the split (of `SPLITS`), identity after identity; the next clip of its group is the other sound.

    A group's only clip is spoken with one of the other group. limit: at most so many clips a group, of as many
    identities as possible. excluded: identities of whom no clip is taken. A clip is measured alike with or without
    both. Raises `ShardError` where the split is empty.
    """
    unseen = set(manifest.unseen())
    groups: dict[str, list[tuple[str, int, str]]] = {group: [] for group in GROUPS}
    for name in sorted(manifest.identities):
        held_out = (entry for entry in manifest.identities[name] if entry.split in SPLITS[split])
        groups["unseen" if name in unseen else "seen"] += [
            (name, turn, each.name) for turn, each in enumerate(held_out)
        ]
    chosen = []
    for group, clips in groups.items():
        counted = [clip for clip in clips if clip[0] not in excluded]
        kept = set(sorted(counted, key=lambda clip: (clip[1], clip[0]))[:limit])
        others = clips if len(clips) > 1 else [*clips, *(each for found in groups.values() for each in found)]
        for index, clip in enumerate(clips):
            if clip in kept:
                later = (others[(index + step) % len(others)] for step in range(1, len(others)))
                sentences = [(each[0], each[2]) for each in later if each != clip]
                other = next(iter(sentences), None)
                dubbed = next((each for each in sentences if each[0] == clip[0]), other)
                chosen.append(HeldOut(group, clip[0], clip[2], other, dubbed))
    if not chosen:
        raise ShardError(f"the shards hold no clip in split {split!r}")
    return chosen


def read_clips(people: People, split: str, entries: list[HeldOut]) -> Iterator[Clip]:
    """The clips of `entries` in their order, one in memory at a time; all the other sounds are held."""
    sounds: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    wanted = {other for entry in entries for other in (entry.other_sound, entry.dubbed_with) if other is not None}
    for identity in sorted({identity for identity, _ in wanted}):
        for piece in _first_pieces(people, identity, split, ("waveform", LANDMARKS)):
            if (identity, piece.clip) in wanted:
                sounds[identity, piece.clip] = piece.waveform, aperture_of(piece.landmarks)
    by_name = {(entry.identity, entry.clip): entry for entry in entries}
    for identity in dict.fromkeys(entry.identity for entry in entries):
        for piece in _first_pieces(people, identity, split):
            entry = by_name.get((identity, piece.clip))
            if entry is not None:
                other = None if entry.other_sound is None else sounds[entry.other_sound][0]
                dubbed = None if entry.dubbed_with is None else sounds[entry.dubbed_with]
                dubbed = dubbed if dubbed is not None and len(dubbed[1]) and len(piece.landmarks) else None
                yield Clip(entry, piece, None if other is None else np.resize(other, len(piece.waveform)), dubbed)


def _first_pieces(
    people: People, identity: str, split: str, columns: tuple[str, ...] = EVERY_COLUMN
) -> Iterator[Piece]:
    for part in SPLITS[split]:
        yield from (piece for piece in people.pieces(identity, part, columns) if piece.begin == 0)


def another_real_clip(people: People, identity: str, clip: str, framing: Framing = ALIGNED) -> np.ndarray | None:
    """Aligned frames uint8 [T, S, S, 3] of the person's next clip, whatever its split; None where there is no other.

    framing: the shards'.
    """
    names = [entry.name for entry in people.manifest.identities[identity]]
    other = names[(names.index(clip) + 1) % len(names)]
    if other == clip:
        return None
    piece = people.clip(identity, other, ("frames", *(() if framing is ALIGNED else (LANDMARKS, PLACES))))[0]
    return Alignment(piece, framing)(piece.frames)
