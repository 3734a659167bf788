"""Joining or starting a Ray cluster."""

import logging
import os
import sys

import ray

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
