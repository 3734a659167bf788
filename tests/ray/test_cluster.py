"""Placement, the parameter server's recovery, and slots that cannot start, on real Ray."""

import time
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.exceptions import OutOfMemoryError

from fedtalk_ray.actors.parameter_server import ask, start_server
from fedtalk_ray.actors.pool import SlotPool
from fedtalk_ray.actors.ray_errors import DEATHS, RoundLost, fetch, first_line
from fedtalk_ray.errors import ClusterError, ShardError
from fedtalk_ray.messages import PlainUpdate
from fedtalk_ray.model.autoencoder import PatchAutoencoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.rounds import train
from tests.ray.conftest import Make


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


def test_a_killed_parameter_server_comes_back_at_its_round_and_one_that_stays_away_loses_it(
    make_config: Make, tmp_path: Path
) -> None:
    server = start_server(make_config(tmp_path), np.zeros(4, np.float32))
    step = PlainUpdate(1, np.array([1, 2, 3, 4], np.float32), 2.0)
    ask(server, "apply", 1, step)
    ray.kill(server, no_restart=False)
    assert ask(server, "round") == 1
    ask(server, "apply", 1, step)  # asked again, changes nothing
    ask(server, "apply", 2, PlainUpdate(2, np.array([2, 0, 0, 0], np.float32), 2.0))
    # Heavy ball 0.5: m1 = (.5, 1, 1.5, 2), m2 = m1 / 2 + (1, 0, 0, 0); theta = m1 + m2.
    np.testing.assert_allclose(ask(server, "shared"), [1.75, 1.5, 2.25, 3.0])
    ray.kill(server, no_restart=True)
    with pytest.raises(RoundLost):
        for _ in range(100):  # killing is asynchronous: a call right after it may still succeed
            ask(server, "round")
            time.sleep(0.05)


@ray.remote
def out_of_memory() -> None:
    raise OutOfMemoryError("Task was killed due to the node running low on memory.\nmore lines")


def test_a_node_without_memory_counts_as_a_death_and_says_so_in_one_line(ray_cluster: None) -> None:
    with pytest.raises(DEATHS) as caught:
        fetch(out_of_memory.remote())
    assert first_line(caught.value).endswith("Task was killed due to the node running low on memory.")
