"""The service over HTTP: `POST /v1/generate`, `/v1/jobs` for long sounds, `/v1/identities`; described by OpenAPI.

Who has no token is turned away before a byte of a body is read, and so is a body that is too long or does not say how
long it is. What a file is, its content says and never its name.
"""

import asyncio
import hmac
import os
import shutil
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedtalk_ray.errors import UserError
from fedtalk_ray.generation.generate import speak_into
from fedtalk_ray.generation.scene import Stopped
from fedtalk_ray.marking.certificates import Signing
from fedtalk_ray.media.video import SAMPLE_RATE, VideoError, read_audio
from fedtalk_ray.model.sampling import DEFAULT_GUIDANCE, DEFAULT_STEPS, Sampling
from fedtalk_ray.service.jobs import Job, JobQueue, QueueFull
from fedtalk_ray.service.speaker import Speaker, UnknownIdentity

REFERENCE, SOUND, VIDEO = "reference", "sound", "video.mp4"
"""What lies in a job's folder."""


@dataclass(frozen=True)
class Limits:
    """body_mb: of one request. seconds, job_seconds: of the sound that `generate` waits for, and of a job's. waiting:
    jobs that wait at most."""

    body_mb: int = 64
    seconds: float = 60.0
    job_seconds: float = 600.0
    waiting: int = 8


class Refused(HTTPException):
    def __init__(self, status: int, why: str, **headers: str) -> None:
        super().__init__(status, why, headers or None)


class AtTheDoor:
    """Lets a request in that has a token and a body of a known and bearable length."""

    def __init__(self, app: ASGIApp, tokens: frozenset[str], most_bytes: int) -> None:
        """tokens: none for everybody."""
        self._app, self._tokens, self._most = app, tokens, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self._refusal(scope["method"], headers):
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, method: str, headers: dict[str, str]) -> JSONResponse | None:
        if self._tokens and not self._known(headers.get("authorization", "")):
            why = "give a token that this service knows: Authorization: Bearer TOKEN"
            return JSONResponse({"detail": why}, 401, {"www-authenticate": "Bearer"})
        # Chunks would say nothing of how many there are, and outdo the length that stands beside them.
        if "transfer-encoding" in headers:
            return JSONResponse({"detail": "say how long the body is: Content-Length, and no chunks"}, 411)
        length = headers.get("content-length", "")
        if method in ("POST", "PUT", "PATCH") and not length.isdecimal():
            return JSONResponse({"detail": "say how long the body is: Content-Length"}, 411)
        if length.isdecimal() and (len(length) > 15 or int(length) > self._most):
            return JSONResponse({"detail": f"the body is longer than {self._most >> 20} MiB"}, 413)
        return None

    def _known(self, given: str) -> bool:
        kind, _, token = given.partition(" ")
        found = [hmac.compare_digest(token.encode(), known.encode()) for known in self._tokens]
        return kind.lower() == "bearer" and any(found)


@dataclass(frozen=True)
class Asked:
    """One form."""

    reference: UploadFile
    sound: UploadFile
    identity: str | None
    crop: bool
    hold_still: bool
    face: int | None
    seed: int
    sampling: Sampling


def asked(
    reference: Annotated[UploadFile, File(description="The face: a picture or a video.")],
    sound: Annotated[UploadFile, File(description="What is said: a sound file, or a video with sound.")],
    identity: Annotated[str | None, Form(description="Whose adapter speaks, of /v1/identities.")] = None,
    crop: Annotated[bool, Form(description="The face alone, as the network makes it.")] = False,
    hold_still: Annotated[bool, Form(description="A photo neither blinks nor sways.")] = False,
    face: Annotated[int | None, Form(ge=1, le=1000, description="Which face, from the left; else the largest.")] = None,
    seed: Annotated[int, Form(ge=0, lt=2**63, description="Of the noise.")] = 0,
    steps: Annotated[int, Form(ge=1, le=50, description="Denoising steps.")] = DEFAULT_STEPS,
    guidance: Annotated[float, Form(ge=0, le=10, description="How far sound is exaggerated.")] = DEFAULT_GUIDANCE,
) -> Asked:
    return Asked(reference, sound, identity, crop, hold_still, face, seed, Sampling(steps, guidance))


def make_app(
    speaker: Speaker,
    folder: Path,
    tokens: frozenset[str] = frozenset(),
    limits: Limits = Limits(),
    signing: Signing | None = None,
) -> FastAPI:
    """folder: what is asked for lies there while it is worked on. tokens: of whom requests are taken; none for
    everybody. signing: as `speak_into` takes it."""
    queue = JobQueue(folder, limits.waiting)

    @asynccontextmanager
    async def life(_: FastAPI) -> Any:
        yield
        await asyncio.to_thread(queue.close)

    # Its pages of documentation are loaded from elsewhere; the description itself is at /openapi.json.
    app = FastAPI(title="fedtalk", version="1", lifespan=life, docs_url=None, redoc_url=None)
    app.add_middleware(AtTheDoor, tokens=tokens, most_bytes=limits.body_mb << 20)
    refusals: dict[int | str, dict[str, Any]] = {
        code: {"description": why}
        for code, why in {
            400: "What was given cannot be used; `detail` says why.",
            401: "No token.",
            404: "Nobody or nothing of that name.",
            411: "No Content-Length.",
            413: "Too long.",
            422: "A field is missing or beyond its range; `detail` says which.",
            429: "As many wait as may; Retry-After says when to ask again.",
        }.items()
    }

    def taken(form: Asked, most_seconds: float) -> Job:
        """The form's job, in the queue."""
        try:
            speaker.check(form.identity)
            job = queue.new()
        except UnknownIdentity as error:
            raise Refused(404, str(error)) from error
        except QueueFull:
            raise Refused(429, "as many wait as may; ask again later", **{"Retry-After": "10"}) from None
        try:
            for name, file in ((REFERENCE, form.reference), (SOUND, form.sound)):
                with open(job.folder / name, "wb") as copy:
                    shutil.copyfileobj(file.file, copy)
        except OSError as error:
            queue.drop(job)
            raise Refused(507, "there is no room for what was given") from error
        queue.begin(job, partial(work, speaker=speaker, form=form, most_seconds=most_seconds, signing=signing))
        return job

    @app.exception_handler(RequestValidationError)
    async def one_line(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.get("/v1/health")
    async def health() -> dict[str, str]:
        return {"state": "ready"}

    @app.get("/v1/identities", responses={401: refusals[401]})
    def identities() -> list[str]:
        """Who can speak with an adapter of her own."""
        return speaker.identities()

    video: dict[int | str, dict[str, Any]] = {
        200: {"content": {"video/mp4": {}}, "description": "The video, marked and with its sound."}
    }

    @app.post("/v1/generate", response_class=FileResponse, responses=video | refusals)
    async def generate(request: Request, form: Annotated[Asked, Depends(asked)]) -> Response:
        """A face says a sound. Who hangs up is not worked for any more."""
        job = await asyncio.to_thread(taken, form, limits.seconds)
        made = asyncio.ensure_future(asyncio.wrap_future(job.result))
        gone = asyncio.ensure_future(hung_up(request))
        try:
            await asyncio.wait({made, gone}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # The service ends.
            queue.drop(job)
            raise
        finally:
            gone.cancel()
        if not made.done():
            made.cancel()
            await asyncio.to_thread(queue.drop, job)
            return Response(status_code=499)
        if error := made.exception():
            await asyncio.to_thread(queue.drop, job)
            raise refusal_of(error, job)
        return FileResponse(job.folder / VIDEO, media_type="video/mp4", background=BackgroundTask(queue.drop, job))

    @app.post("/v1/jobs", status_code=202, responses=refusals)
    def begin(form: Annotated[Asked, Depends(asked)]) -> dict[str, str]:
        """The same, not waited for."""
        return {"job": taken(form, limits.job_seconds).name}

    def found(name: str) -> Job:
        if (job := queue.get(name)) is None:
            raise Refused(404, "no such job")
        return job

    @app.get("/v1/jobs/{name}", responses={404: refusals[404]})
    def look(name: str) -> dict[str, str]:
        """waiting, running, done, failed (`why` says by what) or cancelled."""
        job = found(name)
        state = {"state": job.state}
        if state["state"] == "failed":
            state["why"] = str(refusal_of(job.result.exception(), job).detail)
        return state

    @app.get("/v1/jobs/{name}/video", response_class=FileResponse, responses=video | {404: refusals[404]})
    def fetch(name: str) -> Response:
        job = found(name)
        if job.state != "done":
            raise Refused(404, f"the job is {job.state}")
        try:
            # Whoever takes the job back meanwhile takes the name, and not what is being read.
            file = open(job.folder / VIDEO, "rb")  # noqa: SIM115 (closed by the response)
        except FileNotFoundError:
            raise Refused(404, "no such job") from None
        size = os.fstat(file.fileno()).st_size
        blocks = iter(partial(file.read, 1 << 16), b"")
        headers = {"Content-Length": str(size)}
        return StreamingResponse(blocks, 200, headers, "video/mp4", BackgroundTask(file.close))

    @app.delete("/v1/jobs/{name}", status_code=204, responses={404: refusals[404]})
    def forget(name: str) -> Response:
        """Takes a job back, and what it made off the disk."""
        queue.drop(found(name))
        return Response(status_code=204)

    return app


def work(
    folder: Path,
    stopped: Callable[[], bool],
    speaker: Speaker,
    form: Asked,
    most_seconds: float,
    signing: Signing | None,
) -> None:
    """Makes `folder`'s video; what was given goes. Raises `UserError`s."""
    try:
        sound = sound_in(folder, most_seconds)
        speak_into(
            speaker.model(form.identity),
            str(folder / REFERENCE),
            sound,
            folder / VIDEO,
            crop=form.crop,
            face=form.face,
            hold_still=form.hold_still,
            seed=form.seed,
            sampling=form.sampling,
            signing=signing,
            stopped=stopped,
        )
    finally:
        for name in (REFERENCE, SOUND):
            (folder / name).unlink(missing_ok=True)


def sound_in(folder: Path, most_seconds: float) -> np.ndarray:
    """What is to be said, float32 [N]. Raises `UserError`."""
    try:
        sound = read_audio(folder / SOUND, most_seconds + 1)
    except VideoError as error:
        raise UserError(f"{SOUND}: {str(error).removeprefix(f'{folder / SOUND}: ')}") from error
    if len(sound) > most_seconds * SAMPLE_RATE:
        raise UserError(f"{SOUND}: is longer than {most_seconds:g} s")
    return sound


def refusal_of(error: BaseException | None, job: Job) -> Refused:
    """What whoever asked is told."""
    if isinstance(error, UserError):
        # Without where its files lie here.
        text = str(error).replace(f"{job.folder}/", "")
        return Refused(400, text.replace(f"reference {REFERENCE}", REFERENCE))
    if isinstance(error, Stopped | asyncio.CancelledError):
        return Refused(410, "the job was taken back")
    return Refused(500, "an error of the service's own; its log says which")


async def hung_up(request: Request) -> None:
    """Ends when whoever asked is gone."""
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await request.receive()
