"""Windows by Ray Data: tasks read and cut row groups ahead of the training, within a part of the object store.

The tasks use the project's own reader and not `ray.data.read_parquet`: what is read is checked against the manifest,
the order is ours, and Ray's newer Parquet reader, which starts many actors and can stall on two CPUs, never starts.
"""

import logging
from collections.abc import Iterator

import numpy as np
import ray.data

from fedtalk_ray.errors import ShardError
from fedtalk_ray.shards.reader import Group, GroupReader
from fedtalk_ray.shards.windows import Cut, Window, each_window

REFUSAL = "refusal"


def read_ahead(groups: list[Group], cut: Cut, memory_mb: int) -> Iterator[Window]:
    """Windows in the order of the groups. Half of `memory_mb` is for the object store, the rest for who shuffles."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=memory_mb << 19)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # A block for each group: what a task holds is one group and its windows.
    dataset = ray.data.range(len(groups), override_num_blocks=len(groups))
    dataset = dataset.map_batches(_cut_group, batch_size=1, fn_kwargs={"groups": groups, "cut": cut})
    for block in dataset.iter_batches(batch_size=None, prefetch_batches=1):
        if REFUSAL in block:
            raise ShardError(str(block[REFUSAL][0]))
        yield from each_window(block)


def _cut_group(rows: dict[str, np.ndarray], groups: list[Group], cut: Cut) -> dict[str, np.ndarray]:
    reader = GroupReader(cut.shapes, cut.wanted.columns)
    try:
        parts = list(cut.windows(reader, groups[int(rows["id"][0])]))
    except ShardError as error:
        # As data: Ray Data would wrap it until nobody could tell what it is.
        return {REFUSAL: np.array([str(error)])}
    finally:
        reader.close()
    # Arrow has no tensors without elements: a column of none, as of no embedding, is left out.
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if parts[0][name].size}
