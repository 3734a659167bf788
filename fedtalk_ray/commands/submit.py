"""`fedtalk submit`: the same commands as jobs of a Ray cluster, by its dashboard's address.

The working directory goes along as `ray job submit --working-dir .` would send it, and this package with it where it
lies elsewhere; so the job runs the code that submitted it. Anything else a job reads or writes must lie where every
node reaches it: the copy of the working directory that it runs in is thrown away.
"""

import asyncio
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import sleep
from typing import Any, TextIO

import aiohttp
import requests
from ray import __version__ as RAY
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

import fedtalk_ray
from fedtalk_ray.actors.connection import WORKER_ENVIRONMENT, token_prefix, token_refused
from fedtalk_ray.actors.ray_errors import first_line
from fedtalk_ray.config import load_config
from fedtalk_ray.errors import ClusterError, ConfigError
from fedtalk_ray.model.embedded import EMBEDDED

TASKS = ("prepare", "pretrain", "train", "personalize", "generate", "evaluate", "compare", "corrupt", "report", "app")
"""Commands that may be jobs."""

PLACES = ("out", "run", "shards", "root", "tensorboard", "judge", "metrics", "tokens", "certificate", "key")
"""Parameters that name a file or folder which outlives the job, is too large to be sent along, or a secret."""

STOP_S = 20
"""Seconds that a job which is stopped has to put things in order: the service takes its replicas off the cluster."""

NOT_SENT = ["/data", "/shards", "/runs", "/models", "*.clients"]
"""Folders of the working directory that stay where they are, beside what .gitignore names: people's clips, and what
runs keep of their clients."""

DROPPED = 130
"""Exit code when the user lets go of a job; the shell's own for Ctrl-C."""


def connect_jobs(address: str) -> JobSubmissionClient:
    """A client of the cluster whose dashboard is at `address`. Raises `ClusterError` when that cannot serve."""
    if not address.startswith(("http://", "https://")):
        raise ClusterError(
            f"--address {address} is no dashboard's address; give one as http://HEAD:8265 (a dashboard's usual port)"
        )
    # It tells of every package that it sends, and warns of files that are this package's own.
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.ERROR)
    try:
        client = JobSubmissionClient(address)
    except ConnectionError as error:
        raise ClusterError(
            f"no Ray dashboard answers at {address}; is the head up, and was it started with its dashboard? "
            f"({_reason(error)})"
        ) from error
    except AuthenticationError as error:
        raise token_refused(address, error) from error
    except (RuntimeError, requests.RequestException) as error:
        raise ClusterError(f"{address} does not take jobs: {_reason(error)}") from error
    # Told by the check that the client makes when it connects; it offers no public word for it.
    there = client._server_ray_version
    if there != RAY:
        raise ClusterError(
            f"the cluster at {address} runs Ray {there}, this is Ray {RAY}: install ray=={there} here, or bring the "
            f"cluster to {RAY}"
        )
    return client


def submit(
    client: JobSubmissionClient,
    task: str,
    arguments: list[str],
    working_dir: Path,
    submission_id: str | None = None,
    gpus: float = 0.0,
) -> str:
    """Starts `fedtalk TASK ARGUMENTS` on the cluster; returns the job's id.

    gpus: reserved for the command itself, which Ray then starts on a node that has them.
    Raises `ClusterError` when the cluster does not take it, and `ConfigError` for arguments that no job can serve.
    """
    entrypoint = "python -m fedtalk_ray.commands.cli " + shlex.join([task, *arguments])
    environment: dict[str, Any] = {
        "working_dir": str(working_dir),
        "excludes": NOT_SENT,
        "env_vars": WORKER_ENVIRONMENT | {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)},
    }
    package = Path(fedtalk_ray.__file__).parent
    if package.resolve() != (working_dir / package.name).resolve():
        environment["py_modules"] = [str(package)]
    try:
        return client.submit_job(
            entrypoint=entrypoint,
            submission_id=submission_id,
            runtime_env=environment,
            entrypoint_num_gpus=gpus or None,
        )
    except (RuntimeError, ValueError, AuthenticationError, requests.RequestException) as error:
        text = str(error)
        if size := re.search(r"Package size \(.*?\) exceeds the maximum size of [\d.]+ ?\w+", text):
            raise ClusterError(
                f"working directory {working_dir} is too large for Ray to send: {size[0]}. Its largest entries: "
                f"{', '.join(_largest(working_dir))}. Name what need not go in .gitignore, or give --working-dir a "
                "folder with the configurations alone"
            ) from error
        if "already exists" in text:
            raise ClusterError(
                f"the cluster has a job {submission_id} already; leave out --submission-id or give another one"
            ) from error
        hint = ""
        if "No available agent" in text:
            hint = "; the head may have just started, or its port 52365 is taken (--dashboard-agent-listen-port)"
        raise ClusterError(f"the cluster did not take the job: {_reason(error).rstrip('.')}{hint}") from error


def follow(client: JobSubmissionClient, job: str, ask: Callable[[str], bool] | None, out: TextIO = sys.stdout) -> int:
    """Prints the job's log as it comes; returns the exit code of its command.

    ask: puts a question to the user who presses Ctrl-C; None where there is nobody to ask, and the job goes on. Raises
    `ClusterError` when the connection is lost; the job goes on then, too.
    """
    again = f"the job goes on; its log: {token_prefix()}ray job logs --follow {job} --address {client.get_address()}"
    try:
        asyncio.run(_tail(client, job, out))
        while not (details := client.get_job_info(job)).status.is_terminal():
            # The log has ended; the last words of a job reach the cluster's books a moment later.
            sleep(0.2)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _dropped(client, job, ask, again)
    except (RuntimeError, AuthenticationError, aiohttp.ClientError, requests.RequestException) as error:
        if _was_cancelled(error):
            return _dropped(client, job, ask, again)
        raise ClusterError(
            f"the connection to job {job} was lost ({type(error).__name__}); if the head still runs, {again}; if not, "
            "start the run again with --resume"
        ) from error
    if details.status == JobStatus.SUCCEEDED:
        return 0
    # What Ray adds of the log is above already.
    print(f"job {job} {details.status.lower()}: {_reason(details.message or '').split(', last ')[0]}", file=sys.stderr)
    # Without a code the command never ran, or was stopped.
    return details.driver_exit_code or 1


def check_arguments(task: str, parameters: Mapping[str, Any], working_dir: Path) -> None:
    """Refuses what could only fail, or be lost, on the cluster. Raises `ConfigError`, one line.

    parameters: those of the command, by name, as it would get them. Configurations are read here first, so that a
    typing error shows before anything is sent.
    """
    for name, value in parameters.items():
        if name in PLACES and value is not None and str(value) != EMBEDDED:
            _check_place(f"--{name}", str(value))
    address = parameters.get("address")
    if task == "train" and (file := _sent(parameters["config"], working_dir)):
        config = load_config(file, parameters["overrides"])
        _check_place("run", config.run)
        _check_model(config.shards, config.pretrained, working_dir)
        address = config.address
    if task == "compare" and (file := _sent(parameters["experiment"], working_dir)):
        # Here, because it imports torch, which no other task needs on this side.
        from fedtalk_ray.comparison.experiment import load_experiment

        experiment = load_experiment(file, parameters["out"])
        _check_place("out", experiment.out)
        base = dict(experiment.base) if isinstance(experiment.base, dict) else {}
        base |= {key: value for key, _, value in (text.partition("=") for text in parameters["settings"] or ())}
        if "shards" in base:
            _check_model(str(base["shards"]), base.get("pretrained"), working_dir)
    if address == "local":
        raise ConfigError("address is 'local': a job runs on the cluster that it was sent to; leave it out")


def _sent(file: Path, working_dir: Path) -> Path | None:
    """The file in the working directory, where it must lie to be sent along; None for one that only the cluster has."""
    inside = (working_dir / file).resolve()
    if file.is_absolute():
        return inside if inside.is_file() else None
    if not (inside.is_file() and inside.is_relative_to(working_dir.resolve())):
        raise ConfigError(f"{file} is not in the working directory {working_dir}, which is all that is sent along")
    return inside


def _check_model(shards: str, pretrained: str | None, working_dir: Path) -> None:
    _check_place("shards", shards)
    if pretrained is not None and (working_dir / pretrained).exists():
        # A relative name that is no folder here may be one that is embedded, or a hub id.
        _check_place("pretrained", pretrained)


def _check_place(name: str, value: str) -> None:
    if not Path(value).is_absolute() and "://" not in value:
        raise ConfigError(
            f"{name} is {value!r}: a job runs in a copy of the working directory that is thrown away; give an absolute "
            "path that every node reaches"
        )


def _dropped(client: JobSubmissionClient, job: str, ask: Callable[[str], bool] | None, again: str) -> int:
    if ask is not None and ask(f"stop job {job}?"):
        client.stop_job(job)
        print(f"job {job} was told to stop", file=sys.stderr)
    else:
        print(again, file=sys.stderr)
    return DROPPED


def _was_cancelled(error: BaseException | None) -> bool:
    """Whether it was raised while Ctrl-C ended the connection, which may fail at being ended."""
    while error is not None and not isinstance(error, asyncio.CancelledError):
        error = error.__cause__ or error.__context__
    return error is not None


async def _tail(client: JobSubmissionClient, job: str, out: TextIO) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", file=out, flush=True)


def _largest(folder: Path, count: int = 3) -> list[str]:
    sizes = {}
    for entry in os.scandir(folder):
        inside = Path(entry.path).rglob("*") if entry.is_dir(follow_symlinks=False) else [Path(entry.path)]
        sizes[entry.name] = sum(file.stat().st_size for file in inside if file.is_file())
    return [f"{name} {sizes[name] / 2**20:.0f} MiB" for name in sorted(sizes, key=lambda name: -sizes[name])[:count]]


def _reason(error: Exception | str) -> str:
    """The line that says what happened: of a server's traceback the last."""
    return str(error).strip().splitlines()[-1] if "Traceback" in str(error) else first_line(error)
