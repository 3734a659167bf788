"""`fedtalk app`: a page to try a run's model, and the model behind HTTP for programs."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedtalk_ray.commands.speaking import Model
from fedtalk_ray.errors import ConfigError
from fedtalk_ray.service.admission import LOOPBACK, read_tokens

if TYPE_CHECKING:
    from fedtalk_ray.runs.folder import RunFolder
    from fedtalk_ray.service.making import Maker

MOST_AT_ONCE = 100
"""Connections at once, idle ones too; who has one more is told 503."""


def app(
    run: Model = Path("fedtalk-tiny"),
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any that is free.")] = 8080,
    tokens: Annotated[
        Path | None, typer.Option(help="File of tokens, one a line; asked for beyond this machine.")
    ] = None,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that wait at most; one more is told 429.")] = 8,
    seconds: Annotated[float, typer.Option(min=1, help="Longest sound of a request that is waited for.")] = 60,
    job_seconds: Annotated[float, typer.Option(min=1, help="Longest sound of a job.")] = 600,
    body_mb: Annotated[int, typer.Option(min=1, help="Largest request, MiB.")] = 64,
    identities: Annotated[int, typer.Option(min=1, help="People whose own models stay in memory.")] = 3,
    replicas: Annotated[
        int, typer.Option(min=0, help="Processes of Ray Serve that make videos; 0: this one does, without Ray.")
    ] = 0,
    most_replicas: Annotated[
        int | None, typer.Option(min=1, help="So many while more is asked at once. [default: as many as --replicas]")
    ] = None,
    replica_gpus: Annotated[float, typer.Option(min=0, help="GPUs of each replica, whole or a fraction.")] = 0,
    address: Annotated[str, typer.Option(help='Of replicas: "default", "local", "auto", or host:port.')] = "default",
    certificate: Annotated[
        Path | None, typer.Option(help="PEM chain that signs the content credentials; else one made here, for trials.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's key, PEM.")] = None,
    no_page: Annotated[bool, typer.Option("--no-page", help="Serve programs alone, without the page.")] = False,
) -> None:
    """Open a page to try a model, and let programs ask it over HTTP (docs/page.md, docs/service.md).

    What it makes is marked, always.

    Example: `fedtalk app --run runs/grid --port 8080`
    """
    import uvicorn

    from fedtalk_ray.marking.marked_video import signing_with
    from fedtalk_ray.model.released import open_model
    from fedtalk_ray.service.http import Limits, make_app
    from fedtalk_ray.service.own_folder import own_folder
    from fedtalk_ray.service.speaking import Speaking

    known = frozenset[str]() if tokens is None else read_tokens(tokens)
    if not known and host not in LOOPBACK:
        raise ConfigError(f"--host {host}: others can reach that; give --tokens FILE, or listen at 127.0.0.1")
    signing = signing_with(certificate, key)
    if most_replicas is not None and (not replicas or most_replicas < replicas):
        raise ConfigError(f"--most-replicas {most_replicas}: give --replicas of 1 to {most_replicas} beside it")
    scale = Scale(replicas, most_replicas or replicas, identities, replica_gpus, address)
    model = open_model(run)
    limits = Limits(body_mb, seconds, job_seconds)
    with (
        listening(host, port) as line,
        makers(model, scale, line.getsockname()[1]) as maker,
        own_folder("fedtalk-app-") as folder,
    ):
        # Of what the page is given nothing stays behind either.
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "page")
        speaking = Speaking(model, maker, folder / "jobs", waiting, signing)
        served = make_app(speaking, known, limits)
        if not no_page:
            from fedtalk_ray.page.page import show_page

            served = show_page(served, speaking, folder, seconds, body_mb)
        place = f"[{host}]" if ":" in host else host
        ways = "/v1 for programs" if no_page else "/ in a browser, /v1 for programs"
        print(f"http://{place}:{line.getsockname()[1]}{ways}; Ctrl-C ends", flush=True)
        # What lies in the folder and on the cluster is to go before the process does; uvicorn hands the signal on.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        bounds = uvicorn.Config(
            served, log_level="warning", limit_concurrency=MOST_AT_ONCE, timeout_graceful_shutdown=5
        )
        uvicorn.Server(bounds).run(sockets=[line])


@dataclass(frozen=True)
class Scale:
    """Who makes videos: this process where `least` is 0, else so many replicas, `most` where more is asked at once."""

    least: int
    most: int
    identities: int
    gpus: float
    address: str


@contextmanager
def makers(run: "RunFolder", scale: Scale, port: int) -> "Iterator[Maker]":
    """Who makes the videos of the service at that port, for as long as the block lasts. Raises `ClusterError`."""
    if not scale.least:
        from fedtalk_ray.service.speaker import Speaker

        speaker = Speaker(run, scale.identities)
        speaker.warm_up()
        yield speaker
        return
    from fedtalk_ray.actors.connection import connect, run_label
    from fedtalk_ray.actors.replicas import replicas

    connect(scale.address)
    # One that this machine's service at this port left behind, when it was killed, is taken over.
    name = f"fedtalk-{run_label(run.path)}-{socket.gethostname()}-{port}"
    with replicas(name, run, scale.least, scale.most, scale.identities, scale.gpus) as found:
        yield found


def listening(host: str, port: int) -> socket.socket:
    """A socket there. Raises `ConfigError`."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: {error.strerror or error}; give another") from error
