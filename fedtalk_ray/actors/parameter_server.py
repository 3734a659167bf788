"""The parameter server as a Ray actor that comes back by itself from its checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedtalk_ray.actors.connection import actor_name
from fedtalk_ray.actors.ray_errors import DEATHS, RoundLost, fetch, first_line
from fedtalk_ray.federation.lora_factors import Pair
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig

RETRIES = 3
"""Times that Ray calls a server again which died at a call. All calls may be repeated."""


ServerActor: Any = ray.remote(ParameterServer)


def start_server(config: TrainConfig, initial: np.ndarray, rate: float = 1.0, pairs: tuple[Pair, ...] = ()) -> Any:
    """The server's actor, at its newest checkpoint, or at round 0 with the `initial` parameters float32 [D].

    The parameters reach it through the first checkpoint: large arguments of an actor may be gone by the time it has to
    start again. It stays with the driver, on a node that no autoscaler takes away, where that node has room.
    rate: the probability with which a client is in a cohort, for the ledger. pairs: as in `Checkpoint`.
    """
    folder = RunFolder(Path(config.run))
    if folder.checkpoint(config) is None:
        begun = Checkpoint(0, initial, {}, phase=config.phases[0], pairs=pairs)
        save_checkpoint(folder.checkpoints, begun, config_fingerprint(config))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ServerActor.options(
        name=actor_name(config.run, "server"),
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=RETRIES,
        scheduling_strategy=here,
    )
    return actor.remote(config.run, config, rate)


def ask(server: Any, method: str, *arguments: Any, **keywords: Any) -> Any:
    """The result of a server's method.

    Raises `RoundLost` when the server stays away or what it was to add up is gone, and a user's error as itself.
    """
    call = getattr(server, method).options(name=f"server.{method}")
    try:
        return fetch(call.remote(*arguments, **keywords))
    except DEATHS as error:
        raise RoundLost(
            f"server.{method} was lost with the parameter server or a node ({first_line(error)}); the last "
            "checkpoint is intact: go on with --resume"
        ) from error
