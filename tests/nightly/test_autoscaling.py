"""A cluster that grows and shrinks: real Ray, its own autoscaler, nodes that are processes of this machine.

The cluster is one of its own, because it has a head with an autoscaler; it is driven from a process of its own, because
this one is connected to the shared cluster. Only processes that were started here are ended.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ray.conftest import Make
from tests.ray.own_cluster import ENVIRONMENT, OwnCluster, free_ports

HEAD, WORKER = "ray.head.default", "ray.worker.default"
LISTS = [
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
]
"""Ray's file must name them, and nothing has to be run."""

DRIVER = """
import json, sys, threading, time
import ray
from fedtalk_ray.actors import pool as pools
from fedtalk_ray.config import load_config
from fedtalk_ray.rounds import train

config = load_config(sys.argv[1])
ray.init(address=config.address, log_to_driver=False, logging_level="error")
nodes, ended, slots = [], threading.Event(), []

def look():
    while not ended.wait(0.5):
        nodes.append(sum(node["Alive"] for node in ray.nodes()))

fit_to = pools.SlotPool.fit_to
def noting(self, clients):
    fit_to(self, clients)
    slots.append([len(self.ready), len({slot.node for slot in self.ready})])
pools.SlotPool.fit_to = noting

looking = threading.Thread(target=look)
looking.start()
train(config)
trained = len(nodes)
deadline = time.monotonic() + 90
while time.monotonic() < deadline and nodes[-1] > 1:
    time.sleep(0.5)
ended.set()
looking.join()
print(json.dumps({"during": nodes[:trained], "after": nodes[trained:], "slots": slots}))
"""


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[str]:
    """The address of a head with one CPU and one logical GPU whose autoscaler may add two nodes like it."""
    (port,) = free_ports(1)
    kind = {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}}
    tree: dict[str, Any] = {
        "cluster_name": "fedtalk-test",
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 10.0,
        "provider": {
            "type": "external",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "head_ip": "127.0.0.1",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "available_node_types": {
            HEAD: kind | {"max_workers": 0},
            WORKER: kind | {"min_workers": 0, "max_workers": 2},
        },
        "head_node_type": HEAD,
        "auth": {},
        "file_mounts": {},
        **{key: [] for key in LISTS},
    }
    autoscaling = tmp_path / "autoscaling.yaml"
    autoscaling.write_text(yaml.safe_dump(tree))
    cluster = OwnCluster(tmp_path, gpus=1, autoscaling=autoscaling, port=port)
    try:
        yield cluster.address
    finally:
        cluster.close()


@pytest.mark.timeout(600)
def test_the_pool_grows_and_shrinks(growing: str, make_config: Make, tmp_path: Path) -> None:
    config = make_config(
        tmp_path / "run",
        address=growing,
        rounds=12,
        # Long enough rounds for nodes to come within a few.
        local={"steps": 6, "identity_steps": 0, "batch_size": 2, "score_windows": 2},
        population={"clients": 12},
        cohort={"size": 6},
        slots={"count": 6, "at_least": 2, "num_gpus": 0.5, "placement_timeout_s": 200},
        evaluation={"sample_every": 100, "every": 100, "windows": 1, "clients": 1},
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-c", DRIVER, str(path)]
    driver = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert driver.returncode == 0, driver.stderr[-3000:]
    seen = json.loads(driver.stdout.splitlines()[-1])
    assert seen["during"][0] == 1 and max(seen["during"]) == 3, "one node, then three"
    assert seen["after"][-1] == 1, "idle nodes left"
    assert seen["slots"][0][:2] == [2, 1], "half a GPU each: two slots on the first node"
    assert seen["slots"][-1][:2] == [6, 3], "and two on each of the three, none pending"
