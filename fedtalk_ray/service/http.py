"""The service over HTTP: `POST /v1/generate`, `/v1/jobs` for long sounds, `/v1/identities`; described by OpenAPI.

Who is let in `admission` says. What a file is, its content says and never its name.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from fedtalk_ray.errors import UserError
from fedtalk_ray.model.sampling import DEFAULT_GUIDANCE, DEFAULT_STEPS, Sampling
from fedtalk_ray.service.admission import AtTheDoor, Known, sign_in
from fedtalk_ray.service.identities import identity_endpoints
from fedtalk_ray.service.jobs import Job, QueueFull, begun
from fedtalk_ray.service.live import live_endpoint
from fedtalk_ray.service.making import VideoLost, Wish
from fedtalk_ray.service.speaker import UnknownIdentity
from fedtalk_ray.service.speaking import VIDEO, NoRoom, Speaking, why_not

HEAD_START_S = 0.5
"""Frames come as fast as they are shown, but a second of them at once: so much later, whoever plays the first one need
not wait for others."""


@dataclass(frozen=True)
class Limits:
    """body_mb: of one request. seconds, job_seconds: of the sound that `generate` waits for, and of a job's."""

    body_mb: int = 64
    seconds: float = 60.0
    job_seconds: float = 600.0


class Refused(HTTPException):
    def __init__(self, status: int, why: str, **headers: str) -> None:
        super().__init__(status, why, headers or None)


@dataclass(frozen=True)
class Asked:
    """One form."""

    reference: UploadFile
    sound: UploadFile
    wish: Wish


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
    stream: Annotated[bool, Form(description="Its frames are wanted as they come, as fragmented MP4.")] = False,
) -> Asked:
    wish = Wish(identity, crop, hold_still, face, seed, Sampling(steps, guidance), stream)
    return Asked(reference, sound, wish)


def make_app(speaking: Speaking, tokens: frozenset[str] = frozenset(), limits: Limits = Limits()) -> FastAPI:
    """tokens: of whom requests are taken; none for everybody on this machine."""
    queue = speaking.queue

    @asynccontextmanager
    async def life(_: FastAPI) -> Any:
        yield
        await asyncio.to_thread(queue.close)

    # Its pages of documentation are loaded from elsewhere; the description itself is at /openapi.json.
    app = FastAPI(title="fedtalk", version="1", lifespan=life, docs_url=None, redoc_url=None)
    known = Known(tokens)
    app.add_middleware(AtTheDoor, known=known, most_bytes=limits.body_mb << 20)
    app.include_router(sign_in(known))
    app.include_router(live_endpoint(speaking, limits.seconds, limits.body_mb << 20))
    refusals: dict[int | str, dict[str, Any]] = {
        code: {"description": why}
        for code, why in {
            400: "What was given cannot be used; `detail` says why.",
            401: "No token.",
            403: "Another site's page asks, or this service is asked by a name that is not its own.",
            404: "Nobody or nothing of that name.",
            411: "No Content-Length.",
            413: "Too long.",
            422: "A field is missing or beyond its range; `detail` says which.",
            503: "The process that made the video died; ask again.",
            429: "As many wait as may; Retry-After says when to ask again.",
            507: "There is no room for what was given.",
        }.items()
    }

    app.include_router(identity_endpoints(speaking, refusals))

    def taken(form: Asked, most_seconds: float) -> Job:
        """The form's job, in the queue."""
        try:
            return speaking.begin(form.wish, form.reference.file, form.sound.file, most_seconds)
        except UnknownIdentity as error:
            raise Refused(404, str(error)) from error
        except QueueFull as error:
            raise Refused(429, str(error), **{"Retry-After": "10"}) from None
        except NoRoom as error:
            raise Refused(507, str(error)) from error

    @app.exception_handler(RequestValidationError)
    async def one_line(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.get("/v1/health")
    async def health() -> dict[str, str]:
        return {"state": "ready"}

    video: dict[int | str, dict[str, Any]] = {
        200: {"content": {"video/mp4": {}}, "description": "The video, marked and with its sound."}
    }

    @app.post("/v1/generate", response_class=FileResponse, responses=video | refusals)
    async def generate(request: Request, form: Annotated[Asked, Depends(asked)]) -> Response:
        """A face says a sound. Who hangs up is not worked for any more. With `stream` the frames come as they are made,
        with the invisible mark and without the credentials, which only a whole file can carry."""
        job = await begun(queue, partial(taken, form, limits.seconds))
        if job.growing is not None:
            return await watched(job, request, partial(queue.drop, job))
        made = asyncio.ensure_future(asyncio.wrap_future(job.result))
        # What became of the job is asked of the job; nobody else is to be told that nobody asked.
        made.add_done_callback(lambda done: done.cancelled() or done.exception())
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
        if error := job.error:
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
            state["why"] = str(refusal_of(job.error, job).detail)
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

    @app.get("/v1/jobs/{name}/stream", response_class=StreamingResponse, responses=video | {404: refusals[404]})
    async def watch(name: str, request: Request) -> Response:
        """The video while it is made, of a job that was begun with `stream`: from its beginning, as fragmented MP4."""
        job = found(name)
        if job.growing is None:
            raise Refused(404, "the job was begun without stream")
        return await watched(job, request)

    @app.delete("/v1/jobs/{name}", status_code=204, responses={404: refusals[404]})
    def forget(name: str) -> Response:
        """Takes a job back, and what it made off the disk."""
        queue.drop(found(name))
        return Response(status_code=204)

    return app


async def watched(job: Job, request: Request, at_end: Callable[[], None] = lambda: None) -> Response:
    """A job's video as it grows. at_end: called when all was sent, or whoever asked is gone."""
    assert job.growing is not None
    blocks = job.growing.blocks()
    first: asyncio.Future[bytes] = asyncio.ensure_future(anext(blocks, b""))
    gone: asyncio.Future[Any] = asyncio.ensure_future(hung_up(request))
    waited_for: set[asyncio.Future[Any]] = {first, gone}
    try:
        await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        first.cancel()
        await asyncio.shield(asyncio.to_thread(at_end))
        raise
    finally:
        gone.cancel()
    try:
        if not first.done():
            first.cancel()
            raise Refused(499, "whoever asked is gone")
        if not first.result():
            raise refusal_of(job.error, job)
    except FileNotFoundError:
        await asyncio.to_thread(at_end)
        raise Refused(404, "no such job") from None
    except Refused:
        await asyncio.to_thread(at_end)
        raise

    async def all_blocks() -> AsyncIterator[bytes]:
        if not job.result.done():
            await asyncio.sleep(HEAD_START_S)
        yield first.result()
        async for block in blocks:
            yield block
        if job.stop.is_set() or job.error:
            raise ConnectionAbortedError("the video was not finished")  # or a part would pass for the whole

    return _Sent(all_blocks(), media_type="video/mp4", at_end=at_end)


class _Sent(StreamingResponse):
    """A stream after which something is done, however it ends."""

    def __init__(self, content: AsyncIterator[bytes], media_type: str, at_end: Callable[[], None]) -> None:
        super().__init__(content, media_type=media_type)
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.shield(asyncio.to_thread(self._at_end))


def refusal_of(error: BaseException | None, job: Job) -> Refused:
    """What whoever asked is told."""
    if (why := why_not(error, job)) is None:
        return Refused(500, "an error of the service's own; its log says which")
    if isinstance(error, VideoLost):
        return Refused(503, why)
    return Refused(400 if isinstance(error, UserError) else 410, why)


async def hung_up(request: Request) -> None:
    """Ends when whoever asked is gone."""
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await request.receive()
