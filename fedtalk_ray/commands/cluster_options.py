"""The options of `fedtalk submit` and `fedtalk status`. What they do lies in `submit.py` and `status.py`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedtalk_ray.errors import ClusterError, ConfigError

Address = Annotated[
    str, typer.Option(envvar="RAY_ADDRESS", help='Ray cluster: host:port, or "auto" for one on this machine.')
]
PASSED_ON: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}


def submit(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Argument(
            help="prepare, pretrain, train, personalize, generate, evaluate, compare, corrupt, report or app."
        ),
    ],
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, http://HEAD:8265.")
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[Path, typer.Option(help="Folder that is sent along: configurations, references.")] = Path(),
    submission_id: Annotated[str | None, typer.Option(help="A name for the job; else Ray gives one.")] = None,
    gpus: Annotated[
        float, typer.Option(min=0, help="For the command itself: pretrain, personalize, generate, evaluate.")
    ] = 0.0,
    wait: Annotated[bool, typer.Option(help="Show the log until the job ends, and exit as it does.")] = True,
) -> None:
    """Run a command as a job of a Ray cluster: `fedtalk submit TASK ...` is `fedtalk TASK ...` over there.

    What follows TASK is the task's own: see `fedtalk TASK --help`.

    Ctrl-C asks whether to stop the job. Files must lie where every node reaches them.

    Example: `fedtalk submit train jobs/configs/grid.yaml run=/nfs/runs/grid shards=/nfs/shards/grid
    pretrained=/nfs/models/grid --address http://HEAD:8265`
    """
    use_token(address)
    from fedtalk_ray.commands.command_file import expanded
    from fedtalk_ray.commands.submit import TASKS, check_arguments, connect_jobs, follow
    from fedtalk_ray.commands.submit import submit as submit_job

    if not working_dir.is_dir():
        raise ConfigError(f"--working-dir {working_dir} is no folder")
    if task not in TASKS:
        raise ConfigError(f"{task!r} is no job; jobs are: {', '.join(TASKS)}")
    application: Any = context.find_root().command
    arguments = list(context.args)
    _, *options = expanded(application, [task, *arguments], working_dir)
    # As the command itself will read them over there: what it would not take is refused here.
    parameters = application.commands[task].make_context(f"fedtalk {task}", options).params
    check_arguments(task, parameters, working_dir)
    client = connect_jobs(address)
    job = submit_job(client, task, arguments, working_dir.resolve(), submission_id, gpus)
    print(f"job: {job} (dashboard: {address})", file=sys.stderr)
    if wait and (code := follow(client, job, typer.confirm if sys.stdin.isatty() else None)):
        sys.exit(code)


def status(
    run: Annotated[Path | None, typer.Argument(help="A run's folder: how far it is.")] = None,
    address: Address = "auto",
) -> None:
    """What is at work on a cluster: nodes, slots with their round and client, servers, and what is stuck and why.

    With RUN, how far that run is and its actors alone. Run it on a node of the cluster.

    Example: `fedtalk status runs/grid --address 127.0.0.1:6379`
    """
    use_token(address)
    from fedtalk_ray.actors.connection import connect
    from fedtalk_ray.commands.status import cluster_status, run_text, status_text

    if run is not None:
        print(run_text(run))
    try:
        connect(address)
    except ClusterError as error:
        if run is None:
            raise
        # The run's folder has told how far it is; only a cluster that was named ought to have answered.
        if address != "auto":
            raise
        print(f"no cluster on this machine answers: {error}", file=sys.stderr)
        return
    print(status_text(cluster_status(run)))


def use_token(address: str) -> None:
    """Shows Ray's token to a head on this machine, which asks for it by default, where RAY_AUTH_MODE says nothing.

    To another machine only when the user asks for it: the token opens this one too. Before Ray is imported, which reads
    the mode once.
    """
    host = address.partition("://")[2] or address
    if not (host == "auto" or host.startswith(("127.", "localhost", "[::1]"))):
        return
    kept = Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_MODE" not in os.environ and (
        "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or kept.is_file()
    ):
        os.environ["RAY_AUTH_MODE"] = "token"
