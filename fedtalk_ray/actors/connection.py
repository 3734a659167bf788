"""Joining or starting a Ray cluster: what workers are given, what a refused address or token is told, names of
actors."""

import hashlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import ray
from ray.exceptions import AuthenticationError, RayError

from fedtalk_ray.actors.ray_errors import first_line
from fedtalk_ray.errors import ClusterError

WORKER_ENVIRONMENT = {
    # Several slots share the cores: one compute thread each, at normal priority.
    "OMP_NUM_THREADS": "1",
    # Slots without a GPU must not see any.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # glibc keeps up to 64 MiB of what a step frees: given back and asked for anew, it costs 4% of a training step on a
    # CPU (7,000 page faults). One of the two alone would make it far worse.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
"""For the processes of a local cluster, and of a submitted job."""

DEBUGGER = {"RAY_DEBUG": "legacy", "RAY_DEBUG_POST_MORTEM": "1"}
"""Ray's terminal debugger: a worker that meets `breakpoint()` or an exception waits for `ray debug`."""


def connect(address: str = "default", dashboard: bool = False, debug: bool = False) -> None:
    """Connects this process to Ray, once; `config.TrainConfig.address` says what an address may be.

    `ray.init` without an address would attach to whatever cluster it finds; that is never what a run means.
    debug: workers stop for `ray debug` (docs/debugging.md).
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
    if debug:
        # Before a local cluster starts: its daemons read them, and let `ray debug` and py-spy in.
        os.environ.update(DEBUGGER, RAY_DASHBOARD_ENABLE_PROFILING="1")
    try:
        if address == "local":
            with _environment(WORKER_ENVIRONMENT):
                context = ray.init(
                    address="local", include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=debug
                )
        else:
            _check_somebody_listens(address)
            # Ray would try for a quarter of an hour; one try waits for half a minute.
            os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
            more = {"runtime_env": {"env_vars": DEBUGGER}} if debug else {}
            context = ray.init(address=address, logging_level=logging.ERROR, log_to_driver=debug, **more)
    except AuthenticationError as error:
        raise token_refused(address, error) from error
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise ClusterError(f"no Ray cluster answers at address {address!r}: {first_line(error)}") from error
    except Exception as error:  # Ray's own type for this; it waits half a minute, and no setting changes that
        if not _came_too_late(error):
            raise
        raise ClusterError(
            "Ray did not start in time: other programs have this machine's cores; wait for them, or name a cluster "
            "that is up (address: host:port)"
        ) from error
    if context.dashboard_url and dashboard:
        print(f"Ray dashboard: http://{context.dashboard_url}", file=sys.stderr)
    if debug:
        where = ray.get_runtime_context().gcs_address
        print(f"debug: workers wait for {token_prefix()}RAY_DEBUG=legacy ray debug --address {where}", file=sys.stderr)


def _came_too_late(error: Exception) -> bool:
    """Whether Ray's node did not come up in time, or the dashboard on it, which had nothing to say yet."""
    text = str(error).strip()
    return "timed out during startup" in text or text.endswith("(it contains the error message from the dashboard):")


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """This process's environment with these variables, for the daemons that start meanwhile and whatever they start.

    Not a `runtime_env`: that costs every run two seconds, because workers that are up already cannot be taken.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def token_refused(address: str, error: Exception) -> ClusterError:
    """The error of a cluster that wants another token, or one at all."""
    return ClusterError(
        f"the cluster at {address} refused the token ({first_line(error)}); set RAY_AUTH_MODE=token, and "
        "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's own"
    )


def token_prefix() -> str:
    """What to put before a command of Ray's own where the cluster asks for a token."""
    return "RAY_AUTH_MODE=token " if os.environ.get("RAY_AUTH_MODE") == "token" else ""


def _check_somebody_listens(address: str) -> None:
    """Raises `ConnectionError` within seconds where nobody is at host:port. "auto" is left to Ray."""
    host, separator, port = address.rpartition(":")
    if separator and port.isdecimal() and "://" not in address:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise ConnectionError(f"{error.strerror or error}; is the head up?") from error


_numbers = count(1)


def actor_name(run: str, what: str) -> str:
    """A name for the dashboard, such as "grid-1f3a.slot-3"; no two of a driver's actors have the same."""
    return f"{run_label(run)}.{what}-{next(_numbers)}"


def run_label(run: str | Path) -> str:
    """What the names of a run's actors begin with: its folder's last part, and what tells it from others of that
    name."""
    path = Path(run).resolve()
    return f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:4]}"
