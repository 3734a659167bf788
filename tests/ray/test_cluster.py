"""Placement, the parameter server's recovery, and slots that cannot start, on real Ray."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.exceptions import OutOfMemoryError

from fedtalk_ray.actors.cluster import check_fits
from fedtalk_ray.actors.pool import SlotActor, SlotPool, fetch, start_server
from fedtalk_ray.config import SlotConfig, TrainConfig
from fedtalk_ray.errors import ClusterError, ShardError
from fedtalk_ray.messages import PlainUpdate
from fedtalk_ray.model.autoencoder import PatchAutoencoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.rounds import train

Make = Callable[..., TrainConfig]


def test_a_gpu_fraction_that_no_node_can_hold_is_refused_with_the_arithmetic(ray_cluster: None) -> None:
    """Two GPUs: 0.6 of one fits once per GPU, so a third slot would wait for ever."""
    with pytest.raises(ClusterError) as refused:
        check_fits(SlotConfig(count=3, num_gpus=0.6))
    assert "3 slots of 0.6 GPU (1 per GPU)" in str(refused.value)
    assert "room for 2" in str(refused.value)
    check_fits(SlotConfig(count=2, num_gpus=0.6))
    check_fits(SlotConfig(count=8, num_gpus=0.25))


@pytest.mark.parametrize(
    ("slots", "says"),
    [
        ({"count": 1, "num_gpus": 1.5}, "whole GPUs or a fraction"),
        ({"count": 2, "num_gpus": 2}, "room for 1"),
        ({"count": 5, "num_cpus": 1}, "CPUs by node"),
        ({"count": 1, "num_gpus": 3}, "room for 0"),
    ],
)
def test_slots_that_cannot_be_placed_are_refused(ray_cluster: None, slots: dict, says: str) -> None:
    with pytest.raises(ClusterError, match=says):
        check_fits(SlotConfig(**slots))


def test_slots_on_halves_of_a_gpu_start(make_config: Make, tmp_path: Path) -> None:
    pool = SlotPool(make_config(tmp_path / "halves", slots={"count": 2, "num_gpus": 0.5}))
    try:
        assert pool.vector.dtype == np.float32 and len(pool.vector) > 1000
        assert ray.available_resources()["GPU"] == pytest.approx(1.0)
    finally:
        pool.close()


def test_a_run_that_could_not_start_leaves_no_folder(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ClusterError):
        train(make_config(tmp_path / "run", slots={"count": 3, "num_gpus": 0.6}))
    assert not list(tmp_path.iterdir())


def test_shards_of_another_autoencoder_are_refused(make_config: Make, pretrained: Path, tmp_path: Path) -> None:
    pipeline = TalkingHeadPipeline.from_pretrained(str(pretrained))
    pipeline.register_modules(autoencoder=PatchAutoencoder(luma_coefficients=8, chroma_coefficients=4))
    pipeline.save_pretrained(str(tmp_path / "other"))
    with pytest.raises(ShardError, match="encoded by autoencoder 'patch'"):
        train(make_config(tmp_path / "run", pretrained=str(tmp_path / "other")))


def test_a_slot_that_dies_at_work_is_one_clear_line(make_config: Make, tmp_path: Path) -> None:
    config = make_config(tmp_path)
    slot = SlotActor.remote(config)
    theta = fetch(slot.start.remote())
    server = start_server(config, tmp_path / "checkpoints", theta)
    update = slot.fit.remote(["id0000"], 1, theta)
    ray.kill(slot)
    with pytest.raises(ClusterError, match=r"an actor of the run died .* go on with --resume"):
        fetch(server.apply.remote(1, update))


def test_a_killed_parameter_server_comes_back_at_its_round(make_config: Make, tmp_path: Path) -> None:
    config = make_config(tmp_path)
    server = start_server(config, tmp_path / "checkpoints", np.zeros(4, np.float32))
    step = PlainUpdate(1, np.array([1, 2, 3, 4], np.float32), 2.0)
    fetch(server.apply.remote(1, step))
    ray.kill(server, no_restart=False)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            rounds = ray.get(server.round.remote())
            break
        except ray.exceptions.RayActorError:  # killing is asynchronous: a call may still meet the dying process
            time.sleep(0.2)
    assert rounds == 1
    fetch(server.apply.remote(1, step))  # asked again, changes nothing
    fetch(server.apply.remote(2, PlainUpdate(2, np.array([2, 0, 0, 0], np.float32), 2.0)))
    # Heavy ball 0.5: m1 = (.5, 1, 1.5, 2), m2 = m1 / 2 + (1, 0, 0, 0); theta = m1 + m2.
    np.testing.assert_allclose(fetch(server.shared.remote()), [1.75, 1.5, 2.25, 3.0])


@ray.remote
def out_of_memory() -> None:
    raise OutOfMemoryError("Task was killed due to the node running low on memory.\nmore lines")


def test_a_node_without_memory_is_one_line() -> None:
    with pytest.raises(
        ClusterError, match=r"died \(Task was killed due to the node running low on memory\.\)"
    ) as caught:
        fetch(out_of_memory.remote())
    assert "--resume" in str(caught.value) and "\n" not in str(caught.value)
