"""Shards to training batches, through Ray Data: windows are cut, shuffled and batched in bounded memory."""

import logging
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import ray.data

from fedtalk_ray.data.shards import decode_row, stored_identity
from fedtalk_ray.data.windows import WindowBatch, cut_windows


def stream_windows(
    files: list[str],
    shapes: dict[str, list[int]],
    *,
    window: int,
    windows_per_piece: int,
    batch_size: int,
    seed: int,
    memory_mb: int,
    shuffle_windows: int,
) -> Iterator[WindowBatch]:
    """One pass over one client's files: `windows_per_piece` random windows of each piece, shuffled.

    files: Parquet files of `data.shards`. shapes: the manifest's. memory_mb bounds the object store that the reader
    uses; at most `shuffle_windows` windows are held to shuffle among. The same seed gives the same batches.
    """
    context = ray.data.DataContext.get_current()
    # Ray 2.60's new Parquet reader starts many actors and can stall on two CPUs.
    if hasattr(context, "use_datasource_v2"):
        context.use_datasource_v2 = False
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=memory_mb << 20)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.read_parquet(
        files,
        columns=["client", "clip", "begin", "latents", "speech", *stored_identity(pq.read_schema(files[0]))],
        partitioning=None,
        override_num_blocks=len(files),
    )
    cut = {"shapes": shapes, "window": window, "count": windows_per_piece, "seed": seed}
    # One piece a batch: what a task holds is bounded by a piece and its windows.
    dataset = dataset.map_batches(_cut_windows, batch_size=1, fn_kwargs=cut)
    batches = dataset.iter_torch_batches(
        batch_size=batch_size,
        drop_last=True,
        local_shuffle_buffer_size=shuffle_windows,
        local_shuffle_seed=seed,
        prefetch_batches=1,
    )
    for batch in batches:
        yield WindowBatch(**{name: values.float() for name, values in batch.items()})


def _cut_windows(rows: dict[str, np.ndarray], shapes: dict[str, list[int]], window: int, count: int, seed: int) -> dict:
    piece = decode_row({name: values[0] for name, values in rows.items()}, shapes)
    # The piece's own name seeds its windows: the order in which tasks run does not matter.
    name = np.frombuffer(f"{piece.clip}/{piece.begin}".encode(), np.uint8)
    rng = np.random.default_rng([seed, *name])
    cut = cut_windows(piece.latents, piece.speech, window, count, rng, piece.identity)
    # Arrow has no tensors without elements: where there is no embedding, its column is left out.
    return cut if len(piece.identity) else {name: values for name, values in cut.items() if name != "identity"}
