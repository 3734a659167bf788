"""Where client slots go: so many on each node as its GPUs, CPUs and memory hold, and none that could wait for ever.

Ray itself would leave a slot pending silently when nothing fits, and would put slots that reserve nothing all on one
node. So the arithmetic is done here, on what the nodes have, and every slot is sent to a node by name.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor

from fedtalk_ray.errors import ClusterError
from fedtalk_ray.slot_settings import SlotConfig

READERS_CPUS = 1
"""CPUs of the cluster that slots leave free: Ray Data's tasks would otherwise never run, and no error would say so."""


@dataclass(frozen=True)
class Node:
    """What an alive node has in all, whoever holds it. memory: bytes."""

    name: str
    gpus: float
    cpus: float
    memory: float


def nodes_of(listed: Iterable[Mapping]) -> list[Node]:
    """The alive nodes of `ray.nodes()`, by name."""
    return sorted(
        (
            Node(node["NodeID"], has.get("GPU", 0.0), has.get("CPU", 0.0), has.get("memory", 0.0))
            for node in listed
            if node["Alive"] and (has := node["Resources"]) is not None
        ),
        key=lambda node: node.name,
    )


def room_on(node: Node, slots: SlotConfig) -> int:
    """Slots that fit on an empty node. A fraction of a GPU lies on one GPU: 0.6 fits once, not 1.67 times."""
    room = slots.count
    if slots.num_gpus > 1:
        room = min(room, floor(node.gpus / slots.num_gpus))
    elif slots.num_gpus > 0:
        room = min(room, floor(node.gpus) * floor(1 / slots.num_gpus + 1e-9))
    if slots.num_cpus > 0:
        room = min(room, floor(node.cpus / slots.num_cpus + 1e-9))
    if slots.memory_mb > 0:
        room = min(room, floor(node.memory / (slots.memory_mb << 20)))
    return room


def rooms(nodes: list[Node], slots: SlotConfig) -> dict[str, int]:
    """Slots per node, with the readers' CPUs left free in the cluster."""
    found = {node.name: room_on(node, slots) for node in nodes}
    if slots.num_cpus > 0:
        cpus = {node.name: node.cpus for node in nodes}
        while sum(cpus.values()) - slots.num_cpus * sum(found.values()) < READERS_CPUS and any(found.values()):
            # The node where the most CPUs would be taken gives one slot up.
            found[max(found, key=lambda name: (found[name], name))] -= 1
    return found


def check_fits(slots: SlotConfig, nodes: list[Node]) -> None:
    """Raises `ClusterError`, with the arithmetic, when the cluster can never hold the slots that a run starts with.

    With `slots.at_least` it is enough that an autoscaler may add nodes for the others.
    """
    if slots.num_gpus > 1 and slots.num_gpus != floor(slots.num_gpus):
        raise ClusterError(
            f"slots.num_gpus is {slots.num_gpus}: Ray gives whole GPUs or a fraction of one, for example 0.5, 1 or 2"
        )
    room, wanted = sum(rooms(nodes, slots).values()), slots.at_least or slots.count
    if room >= wanted:
        return
    per_gpu = f" ({floor(1 / slots.num_gpus + 1e-9)} per GPU)" if 0 < slots.num_gpus <= 1 else ""
    memory = f", {slots.memory_mb} MiB" if slots.memory_mb else ""
    free = " One CPU is left to the readers of shards." if slots.num_cpus else ""
    raise ClusterError(
        f"{wanted} slots of {slots.num_gpus:g} GPU{per_gpu} and {slots.num_cpus:g} CPU{memory} do not fit: the "
        f"cluster has room for {room} (GPUs by node: {[round(node.gpus) for node in nodes]}, CPUs by node: "
        f"{[round(node.cpus) for node in nodes]}, GiB by node: {[round(node.memory / 2**30) for node in nodes]})."
        f"{free} Lower slots.count, slots.num_gpus, slots.num_cpus or slots.memory_mb, or add nodes"
    )


def next_nodes(wanted: int, held: Iterable[str], nodes: list[Node], slots: SlotConfig) -> list[str]:
    """Names of the nodes for `wanted` more slots, one for each that fits. held: the nodes of the slots there are.

    The node with the most room left comes first, so that slots spread and the readers' and learners' work with them.
    """
    left = Counter(rooms(nodes, slots))
    left.subtract(name for name in held if name in left)
    chosen = []
    for _ in range(wanted):
        name = max(left, key=lambda name: (left[name], name), default=None)
        if name is None or left[name] < 1:
            break
        chosen.append(name)
        left[name] -= 1
    return chosen


def bundles(wanted: int, slots: SlotConfig) -> list[dict[str, float]]:
    """What an autoscaler must find room for, one bundle a slot and one CPU for the readers."""
    one = {"GPU": slots.num_gpus, "CPU": slots.num_cpus, "memory": float(slots.memory_mb << 20)}
    asked = {name: amount for name, amount in one.items() if amount}
    readers = [{"CPU": float(READERS_CPUS)}] if slots.num_cpus else []
    return [asked] * wanted + readers if asked else []
