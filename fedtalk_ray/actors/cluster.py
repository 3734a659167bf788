"""Joining or starting a Ray cluster, and checking that it can hold what the configuration asks for."""

import logging
import os
import sys
from math import floor

import ray

from fedtalk_ray.config import SlotConfig
from fedtalk_ray.errors import ClusterError


def connect(address: str = "default", dashboard: bool = False) -> None:
    """Connects this process to Ray, once; `config.TrainConfig.address` says what an address may be.

    `ray.init` without an address would attach to whatever cluster it finds; that is never what a run means.
    """
    if ray.is_initialized():
        return
    if address == "default":
        address = os.environ.get("RAY_ADDRESS", "local")
    if address.startswith("http"):
        raise ClusterError(
            f"{address} is a dashboard's address, for `ray job submit`; name the cluster as host:port, or local"
        )
    # Workers would otherwise run at niceness 15 and lose every core to any other program.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Every result is fetched. When all slots fail alike, the first one's line is enough; Ray would print the others'.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    environment = {
        # Several slots share the cores: one compute thread each, at normal priority.
        "OMP_NUM_THREADS": "1",
        # Slots without a GPU must not see any.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    try:
        if address == "local":
            context = ray.init(
                address="local",
                include_dashboard=dashboard,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": environment},
            )
        else:
            context = ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise ClusterError(f"no Ray cluster answers at address {address!r}: {error}") from error
    if context.dashboard_url:
        print(f"Ray dashboard: http://{context.dashboard_url}", file=sys.stderr)


def check_fits(slots: SlotConfig) -> None:
    """Raises `ClusterError`, with the arithmetic, when the connected cluster can never place that many slots.

    Ray itself would wait for ever: a slot lives on one node, and a fraction of a GPU on one GPU.
    """
    if slots.num_gpus > 1 and slots.num_gpus != floor(slots.num_gpus):
        raise ClusterError(
            f"slots.num_gpus is {slots.num_gpus}: Ray gives whole GPUs or a fraction of one, for example 0.5, 1 or 2"
        )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    cpus = [float(node.get("CPU", 0)) for node in nodes]
    room = sum(_slots_on(slots, gpu, cpu) for gpu, cpu in zip(gpus, cpus, strict=True))
    if room < slots.count:
        per_gpu = f" ({floor(1 / slots.num_gpus + 1e-9)} per GPU)" if 0 < slots.num_gpus <= 1 else ""
        raise ClusterError(
            f"{slots.count} slots of {slots.num_gpus:g} GPU{per_gpu} and {slots.num_cpus:g} CPU do not fit: the "
            f"cluster has room for {room} (GPUs by node: {gpus}, CPUs by node: {[round(cpu) for cpu in cpus]}); lower "
            "slots.count, slots.num_gpus or slots.num_cpus, or add nodes"
        )


def _slots_on(slots: SlotConfig, gpus: int, cpus: float) -> int:
    room = slots.count
    if slots.num_gpus > 1:
        room = min(room, gpus // int(slots.num_gpus))
    elif slots.num_gpus > 0:
        room = min(room, gpus * floor(1 / slots.num_gpus + 1e-9))
    if slots.num_cpus > 0:
        room = min(room, floor(cpus / slots.num_cpus + 1e-9))
    return room
