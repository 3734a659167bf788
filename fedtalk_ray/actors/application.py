"""The service and its page as one application of Ray Serve, for clusters that run such applications (KubeRay's
RayService): `import_path: fedtalk_ray.actors.application:application`.

Serve's proxies take the requests and hand them to one process, which holds the queue, the page and the signing key;
replicas make the videos. `fedtalk app` is the same without proxies, with its own port.
"""

import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve

from fedtalk_ray.actors.replicas import SPEAKER, Replicas, speaker_deployment
from fedtalk_ray.marking.marked_video import signing_with
from fedtalk_ray.model.released import open_model
from fedtalk_ray.service.admission import read_tokens
from fedtalk_ray.service.http import Limits, make_app
from fedtalk_ray.service.own_folder import own_folder
from fedtalk_ray.service.speaking import Speaking

AT_ONCE = 100
"""Requests at once, those that wait and watch too."""


class Settings(BaseModel):
    """What `args` of the application may hold; files and folders lie where every node reaches them."""

    model_config = ConfigDict(extra="forbid")

    run: str
    """A run's folder or a pretrained pipeline."""
    tokens: str
    """File of the tokens of those who are let in, one a line."""
    replicas: int = Field(1, ge=1)
    """Processes that make videos."""
    most_replicas: int | None = Field(None, ge=1)
    """So many while more is asked at once; as many as `replicas` where it is not given."""
    replica_gpus: float = Field(0.0, ge=0)
    """GPUs of each replica, whole or a fraction; a CPU where it is 0."""
    identities: int = Field(3, ge=1)
    """People whose own models a replica keeps in memory."""
    waiting: int = Field(8, ge=1)
    """Requests that wait at most; one more is told 429."""
    seconds: float = Field(60.0, ge=1)
    """Longest sound of a request that is waited for."""
    job_seconds: float = Field(600.0, ge=1)
    """Longest sound of a job."""
    body_mb: int = Field(64, ge=1)
    """Largest request, MiB."""
    certificate: str | None = None
    """PEM chain that signs the content credentials; else one made by the process, for trials."""
    key: str | None = None
    """The certificate's key, PEM."""
    page: bool = True
    """Whether the page for people is there too."""

    @model_validator(mode="after")
    def _in_order(self) -> "Settings":
        if self.most() < self.replicas:
            raise ValueError(f"most_replicas is {self.most_replicas}, fewer than replicas, {self.replicas}")
        return self

    def most(self) -> int:
        return self.most_replicas or self.replicas


def application(settings: Settings) -> serve.Application:
    """Raises `UserError`s for a model or a file that is not there."""
    run = open_model(settings.run)
    read_tokens(Path(settings.tokens))
    signing_with(settings.certificate, settings.key)
    speaker = speaker_deployment(run, settings.replicas, settings.most(), settings.identities, settings.replica_gpus)

    def service() -> FastAPI:
        return _service(settings)

    at_the_door = serve.deployment(
        serve.ingress(service)(),
        name="service",
        # One queue, and one page that knows what it has begun.
        num_replicas=1,
        max_ongoing_requests=AT_ONCE,
        max_queued_requests=AT_ONCE,
        ray_actor_options={"num_cpus": 1},
    )
    return at_the_door.bind(speaker)


def _service(settings: Settings) -> FastAPI:
    """In its own process: the service that asks the application's replicas."""
    ending = ExitStack()
    folder = ending.enter_context(own_folder("fedtalk-app-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "page")
    run = open_model(settings.run)
    name = serve.get_replica_context().app_name
    makers = Replicas(run, serve.get_deployment_handle(SPEAKER, app_name=name), settings.most())
    signing = signing_with(settings.certificate, settings.key)
    speaking = Speaking(run, makers, folder / "jobs", settings.waiting, signing)
    limits = Limits(settings.body_mb, settings.seconds, settings.job_seconds)
    app = make_app(speaking, read_tokens(Path(settings.tokens)), limits)
    if settings.page:
        from fedtalk_ray.page.page import show_page

        app = show_page(app, speaking, folder, settings.seconds, settings.body_mb)
    served = app.router.lifespan_context

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        with ending:
            async with served(app):
                yield

    app.router.lifespan_context = life
    return app
