"""How client slots run, how they read shards, and what happens when one dies or is late."""

from typing import Literal

from pydantic import Field

from fedtalk_ray.recipe import Section


class SlotConfig(Section):
    """Client slots: Ray actors that hold the model and work for one client after another."""

    count: int = Field(2, ge=1)
    """How many slots, and into how many chunks a cohort is dealt; results are bit-identical for the same count (sums
    are added chunk by chunk), however many slots are alive."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs per slot, whole or a fraction that divides one (0.25 puts four slots on a GPU)."""
    num_cpus: float = Field(0.0, ge=0)
    """CPUs that Ray reserves per slot. 0 leaves them to the readers of shards; a slot still computes on one thread."""
    memory_mb: int = Field(0, ge=0)
    """Memory that Ray reserves per slot, so that a node gets no more slots than it has room for. 0 reserves none."""
    threads: int = Field(1, ge=1)
    """Compute threads of one slot on a CPU; several slots beat several threads."""
    at_least: int | None = Field(None, ge=1)
    """Fewer than `count`: the run starts with so many, and the pool grows and shrinks with the cluster and the cohort.
    null: all of them, and no fewer."""
    clients_per_slot: int = Field(1, ge=1)
    """With `at_least`: a cohort asks for one slot for so many clients, `count` at most. Where its size is secret
    (docs/privacy.md), the expected size counts."""
    placement_timeout_s: float = Field(120.0, gt=0)
    """How long to wait until all slots are up, before saying what is missing."""


class StreamConfig(Section):
    """How slots read their clients' shards."""

    reader: Literal["auto", "direct", "ray"] = "auto"
    """direct: in the slot, one row group at a time. ray: by Ray Data's tasks, ahead of the training. Both give the same
    batches. auto: ray for shards behind a URI and for clients larger than `direct_mb`, else direct."""
    direct_mb: int = Field(4096, ge=0)
    """auto: the largest client, in MiB of its files, that is read directly. That was measured to be twenty times faster
    and to hold less, whatever the size; Ray Data reads ahead, which pays where every read waits for a network."""
    memory_mb: int = Field(256, ge=16)
    """What one slot's reader may hold: the windows to shuffle among, what is being read, and for `ray` half of it
    in the object store."""
    shuffle_windows: int = Field(64, ge=1)
    """Windows held to shuffle among."""


class FailureConfig(Section):
    """What happens when a slot dies or is late (`federation.failure_policy`)."""

    retries: int = Field(2, ge=0)
    """How often the clients of a lost slot are given to another one, and how often a round that was lost as a whole is
    run again."""
    replace: bool = True
    """Whether another slot is started in place of one that died."""
    quorum: float = Field(0.5, ge=0, le=1)
    """Share of the clients asked that must have answered when a round closes; the run ends where there are fewer."""
    deadline_s: float | None = Field(None, gt=0)
    """Seconds after which clients that are still training are left out of the round. null: waits for all."""
    grace_s: float = Field(30.0, gt=0)
    """Seconds that a slot has, once told to stop, before it is taken for dead."""
