"""Shards to training batches in bounded memory: pieces are read in random order, cut into windows, shuffled, batched.

Two readers give the same batches for the same seed:

direct  row groups are read in this process, one at a time. For shards that are small and on a local disk.
ray     row groups are read and cut by Ray Data's tasks, ahead of the training. For shards that are large or far away.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedtalk_ray.errors import ShardError
from fedtalk_ray.shards.format import ARRAYS, ROW_GROUP_BYTES, Manifest
from fedtalk_ray.shards.population import Portion
from fedtalk_ray.shards.reader import Group, GroupReader, list_groups
from fedtalk_ray.shards.storage import is_remote
from fedtalk_ray.shards.windows import LATENTS, Cut, PictureBatch, Wanted, Window, WindowBatch, each_window
from fedtalk_ray.slot_settings import StreamConfig


def stream_batches(
    root: str | Path,
    manifest: Manifest,
    portions: Sequence[Portion],
    *,
    window: int,
    windows: int,
    batch_size: int,
    seed: int,
    stream: StreamConfig,
    wanted: Wanted | None = None,
) -> Iterator[Any]:
    """One pass over a client's training pieces: at least `windows` random windows, the same number of each piece.

    root, manifest: the shards. portions: what of them is the client's. window: frames. The same seed gives the same
    batches, whichever reader. wanted: what is in them, a `PictureBatch` where that is pictures, else a `WindowBatch`.
    What is read stops when the caller stops. Raises `ShardError` for shards that cannot be read and for a
    `stream.memory_mb` too small for them.
    """
    wanted = wanted or LATENTS
    groups = [
        group
        for portion in portions
        for group in list_groups(root, manifest, portion.identity, portion.split, portion.pieces)
    ]
    pieces = sum(len(group.rows) for group in groups)
    if not pieces:
        raise ShardError(f"{root} holds nothing to train on for {', '.join(portion.identity for portion in portions)}")
    rng = np.random.default_rng([seed, 1])
    # Whole row groups in random order: a client who needs few windows then reads few groups.
    groups = [groups[index] for index in rng.permutation(len(groups))]
    cut = Cut(manifest.shapes, window, -(-windows // pieces), seed, wanted)
    check_budget(manifest, portions, window, cut.count, stream, wanted)
    if chosen_reader(root, groups, stream) == "ray":
        # Here, because Ray Data takes seconds to import and most clients are read directly.
        from fedtalk_ray.shards.read_ahead import read_ahead

        found = read_ahead(groups, cut, stream.memory_mb)
    else:
        found = read_directly(groups, cut)
    kind = PictureBatch if wanted.pictures else WindowBatch
    for batch in _batched(shuffled(found, stream.shuffle_windows, rng), batch_size):
        yield kind(**batch)


def chosen_reader(root: str | Path, groups: list[Group], stream: StreamConfig) -> str:
    """ "direct" or "ray": what `stream.reader` says, or by where the files lie and how large they are together."""
    if stream.reader != "auto":
        return stream.reader
    sizes = {group.file: group.entry.bytes for group in groups if group.entry is not None}
    return "ray" if is_remote(root) or sum(sizes.values()) > stream.direct_mb << 20 else "direct"


def check_budget(
    manifest: Manifest,
    portions: Sequence[Portion],
    window: int,
    count: int,
    stream: StreamConfig,
    wanted: Wanted = LATENTS,
) -> None:
    """Raises `ShardError` when what has to be held at once does not fit into `stream.memory_mb`.

    Held are the windows to shuffle among, and one row group as it is read and cut.
    """
    frame = sum(
        np.dtype(ARRAYS[name]).itemsize * int(np.prod(manifest.shapes[name]))
        for name in wanted.columns
        if name in ARRAYS
    )
    one = (window + 1) * frame
    clips = [clip for portion in portions for clip in manifest.identities[portion.identity]]
    longest = max(-(-clip.frames // clip.pieces) for clip in clips)
    needed = stream.shuffle_windows * one + max(ROW_GROUP_BYTES, longest * frame) + count * one
    if needed > stream.memory_mb << 20:
        raise ShardError(
            f"stream.memory_mb is {stream.memory_mb}, and {needed / 2**20:.0f} are needed for the piece that is read "
            f"and {stream.shuffle_windows} windows of {one / 2**20:.2f} MiB to shuffle among; raise it, or lower "
            "stream.shuffle_windows"
        )


def read_directly(groups: list[Group], cut: Cut) -> Iterator[Window]:
    """Windows in the order of the groups, read in this process."""
    reader = GroupReader(cut.shapes, cut.wanted.columns)
    try:
        for group in groups:
            for stacked in cut.windows(reader, group):
                yield from each_window(stacked)
    finally:
        reader.close()


def shuffled(windows: Iterable[Window], held: int, rng: np.random.Generator) -> Iterator[Window]:
    """The windows in another order: `held` of them wait, and each new one takes the place of a random one."""
    waiting: list[Window] = []
    for window in windows:
        if len(waiting) < held:
            waiting.append(window)
            continue
        place = int(rng.integers(held))
        yield waiting[place]
        waiting[place] = window
    for index in rng.permutation(len(waiting)):
        yield waiting[index]


def _batched(windows: Iterable[Window], size: int) -> Iterator[dict[str, torch.Tensor]]:
    batch: list[Window] = []
    for window in windows:
        batch.append(window)
        if len(batch) == size:
            yield {name: _stacked([one[name] for one in batch]) for name in batch[0]}
            batch = []


def _stacked(arrays: list[np.ndarray]) -> torch.Tensor:
    """float32 (pictures stay uint8), cast where it lies; stacked first and cast then, it would be written twice."""
    kind = torch.uint8 if arrays[0].dtype == np.uint8 else torch.float32
    stacked = torch.empty(len(arrays), *arrays[0].shape, dtype=kind)
    for place, array in zip(stacked, arrays, strict=True):
        place.copy_(torch.from_numpy(array))
    return stacked
