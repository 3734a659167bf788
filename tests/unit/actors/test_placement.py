"""Where slots go, by hand-worked arithmetic, without Ray."""

import pytest

from fedtalk_ray.actors.placement import Node, bundles, check_fits, next_nodes, nodes_of, room_on, rooms
from fedtalk_ray.errors import ClusterError
from fedtalk_ray.slot_settings import SlotConfig

GIB = 1 << 30
ONE = Node("a", gpus=2, cpus=4, memory=8 * GIB)


@pytest.mark.parametrize(
    ("slots", "room"),
    [
        ({"num_gpus": 0.25}, 8),
        ({"num_gpus": 0.6}, 2),  # one on each GPU; 0.8 of a GPU is left over
        ({"num_gpus": 0.3}, 6),
        ({"num_gpus": 1}, 2),
        ({"num_gpus": 2}, 1),
        ({"num_gpus": 3}, 0),
        ({"num_cpus": 1.5}, 2),
        ({"memory_mb": 3000}, 2),
        ({"num_gpus": 0.5, "num_cpus": 2}, 2),
        ({"num_gpus": 0.5, "memory_mb": 8192}, 1),
        ({}, 99),
    ],
)
def test_slots_on_a_node_of_two_gpus_four_cpus_and_eight_gib(slots: dict, room: int) -> None:
    assert room_on(ONE, SlotConfig(count=99, **slots)) == room


def test_one_cpu_of_the_cluster_is_left_to_the_readers() -> None:
    nodes = [ONE, Node("b", 0, 2, GIB)]
    assert rooms(nodes, SlotConfig(count=99, num_cpus=1)) == {"a": 3, "b": 2}
    assert rooms([Node("a", 0, 1, GIB)], SlotConfig(count=1, num_cpus=1)) == {"a": 0}
    assert rooms([Node("a", 0, 1, GIB)], SlotConfig(count=1, num_cpus=0)) == {"a": 1}


@pytest.mark.parametrize(
    ("slots", "says"),
    [
        ({"count": 3, "num_gpus": 0.6}, r"3 slots of 0.6 GPU \(1 per GPU\) and 0 CPU do not fit: .* room for 2"),
        ({"count": 1, "num_gpus": 1.5}, "whole GPUs or a fraction"),
        ({"count": 2, "num_gpus": 2}, "room for 1"),
        ({"count": 4, "num_cpus": 1}, r"CPUs by node: \[4\], .* One CPU is left to the readers"),
        ({"count": 3, "memory_mb": 3072}, r"3072 MiB do not fit: .* room for 2 .* GiB by node: \[8\]"),
    ],
)
def test_slots_that_can_never_be_placed_are_refused_with_the_arithmetic(slots: dict, says: str) -> None:
    with pytest.raises(ClusterError, match=says) as refused:
        check_fits(SlotConfig(**slots), [ONE])
    assert "\n" not in str(refused.value)
    # One that may grow needs room only for its beginning.
    check_fits(SlotConfig(count=8, at_least=2, num_gpus=1), [ONE])
    with pytest.raises(ClusterError, match="3 slots"):
        check_fits(SlotConfig(count=8, at_least=3, num_gpus=1), [ONE])


def test_slots_spread_over_nodes_and_fill_what_is_left() -> None:
    nodes = [ONE, Node("b", 1, 4, GIB)]
    slots = SlotConfig(count=6, num_gpus=0.5)  # room for four on a and two on b
    chosen = next_nodes(6, [], nodes, slots)
    assert sorted(chosen) == ["a"] * 4 + ["b"] * 2 and chosen[:2] == ["a", "a"]
    assert next_nodes(9, ["a", "a", "b"], nodes, slots).count("b") == 1
    assert next_nodes(2, ["a"] * 4 + ["b"] * 2, nodes, slots) == []
    assert sorted(next_nodes(4, [], nodes, SlotConfig(count=4))) == ["a", "a", "b", "b"], (
        "no reservation: spread evenly"
    )
    assert next_nodes(1, [], [], slots) == []


def test_what_an_autoscaler_is_asked_for() -> None:
    assert bundles(2, SlotConfig(num_gpus=0.5)) == [{"GPU": 0.5}, {"GPU": 0.5}]
    assert bundles(1, SlotConfig(num_cpus=2, memory_mb=1)) == [{"CPU": 2, "memory": 1 << 20}, {"CPU": 1.0}]
    assert bundles(0, SlotConfig(num_gpus=1)) == [] and bundles(3, SlotConfig()) == []


def test_dead_nodes_have_no_room() -> None:
    listed = [
        {"NodeID": "b", "Alive": True, "Resources": {"CPU": 2.0, "memory": 5.0}},
        {"NodeID": "a", "Alive": True, "Resources": {"GPU": 1.0}},
        {"NodeID": "c", "Alive": False, "Resources": {"CPU": 8.0}},
    ]
    assert nodes_of(listed) == [Node("a", 1, 0, 0), Node("b", 0, 2, 5)]
