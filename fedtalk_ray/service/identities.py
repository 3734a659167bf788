"""`/v1/identities`: people whose own adapters speak. Who trained hers elsewhere brings it, and takes it away again."""

import asyncio
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, File, Form, HTTPException, UploadFile
from fastapi.responses import Response

from fedtalk_ray.errors import UserError
from fedtalk_ray.service.jobs import QueueFull, begun
from fedtalk_ray.service.person import Person
from fedtalk_ray.service.speaking import NO_ROOM, Speaking

WEIGHTS = "weights"
"""What was brought, in the folder of its job."""


def identity_endpoints(speaking: Speaking, refusals: dict[int | str, dict[str, Any]]) -> APIRouter:
    """refusals: what may be answered, by status."""
    router, at = APIRouter(), "/v1/identities/{name}"

    @router.get("/v1/identities", responses={401: refusals[401]})
    def identities() -> list[str]:
        """Who can speak with an adapter of her own."""
        return speaking.identities()

    @router.put(at, status_code=204, responses=refusals)
    async def bring(
        name: str,
        weights: Annotated[UploadFile, File(description="The adapter_model.safetensors that personalising made.")],
        consent: Annotated[str, Form(min_length=1, max_length=1000, description="What she agreed to; it is kept.")],
    ) -> Response:
        """Somebody's adapter, trained beside this very model. An earlier one of hers is replaced."""
        job = None
        try:
            bring_hers = partial(_bring, speaking, name, consent, weights.file)
            job = await begun(speaking.queue, partial(speaking.begin_training, bring_hers))
            await asyncio.shield(asyncio.wrap_future(job.result))
        except QueueFull as error:
            raise HTTPException(429, str(error), {"Retry-After": "10"}) from None
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        except OSError as error:
            raise HTTPException(507, NO_ROOM) from error
        finally:
            if job is not None:
                await asyncio.shield(asyncio.to_thread(speaking.queue.drop, job))
        return Response(status_code=204)

    @router.delete(at, status_code=204, responses={code: refusals[code] for code in (400, 401, 404)})
    def take_away(name: str) -> Response:
        """Everything of somebody who came by this service or its page: adapters, clips, what she agreed to."""
        try:
            there = delete_person(speaking, name)
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        if not there:
            raise HTTPException(404, "nobody of that name came by this service")
        return Response(status_code=204)

    return router


def delete_person(speaking: Speaking, name: str) -> bool:
    """Deletes everything of somebody, and videos that show her; False where there was nothing. Raises `UserError` for a
    name that is no such person's."""
    person = Person(speaking.run, name)
    there = person.folder.path.exists()
    person.delete()  # also what is left of a deletion that was broken off
    if not there:
        return False
    speaking.maker.forget(name)
    for job in speaking.shown.pop(name, []):
        speaking.queue.drop(job)
    return True


def _bring(
    speaking: Speaking, name: str, consent: str, weights: BinaryIO, folder: Path, stopped: Callable[[], bool]
) -> None:
    with open(folder / WEIGHTS, "wb") as copy:
        shutil.copyfileobj(weights, copy)
    Person(speaking.run, name).bring(folder / WEIGHTS, consent)
    speaking.maker.forget(name)
