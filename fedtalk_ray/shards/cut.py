"""From the pieces of a row group to single windows, the same whichever process does it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fedtalk_ray.errors import ShardError
from fedtalk_ray.shards.reader import Group, GroupReader
from fedtalk_ray.shards.windows import cut_windows

COLUMNS = ("latents", "speech")
"""The bytes columns that windows are cut from."""

Window = dict[str, np.ndarray]
"""latents [T, C, h, w], speech [T, hops, mel], reference [C, h, w] as stored, identity float32 [D]."""


@dataclass(frozen=True)
class Cut:
    """How pieces become windows; a part of what Ray Data's tasks are told."""

    shapes: dict[str, list[int]] = field(hash=False)
    window: int
    count: int
    seed: int

    def windows(self, reader: GroupReader, group: Group) -> Iterator[dict[str, np.ndarray]]:
        """`count` random windows of each of the group's pieces, stacked piece by piece."""
        for row, piece in zip(group.rows, reader.read(group), strict=True):
            if len(piece.latents) < self.window:
                raise ShardError(
                    f"shard {group.file}: piece {row} of row group {group.group} has {len(piece.latents)} frames, and "
                    f"a window takes {self.window}"
                )
            # By the piece's own place: the order in which tasks run does not matter.
            name = f"{self.seed}/{'/'.join(group.file.split('/')[-2:])}/{group.group}/{row}"
            yield cut_windows(piece.latents, piece.speech, self.window, self.count, name, piece.identity)


def each_window(stacked: dict[str, np.ndarray]) -> Iterator[Window]:
    """The windows of a stack, one by one."""
    count = len(stacked["latents"])
    for index in range(count):
        # A copy: a view would keep all windows of the piece for as long as one of them waits to be shuffled. And torch
        # warns of what cannot be written to, such as what comes out of Ray's store.
        yield {
            name: values[index] if count == 1 and values.flags.writeable else values[index].copy()
            for name, values in stacked.items()
        }
