"""The gate on the network: HTTPS, one path a question, bodies of bounded size, read only of who may send them.

Any number of processes may have the application over the same gate: whether a member signed a request is looked at
here, and whether it came before, there.

    GET  /v1/authority                  the authority's certificate, PEM
    POST /v1/requests                   a request for membership (`enrolment.invite`)
    GET  /v1/members                    the signed list of members; 304     \\
    GET  /v1/offer                      what the run is about; 204 before    | of members alone,
    GET  /v1/files/HASH                 a file; ranges are answered          | by signed headers
    POST /v1/next                       the next order, or 204 after a while | (`enrolment.caller`)
    POST /v1/replies/EXCHANGE/STAGE     a reply to it                       /
    GET  /v1/released                   the files of the released model     | with a token
    GET  /v1/released/HASH              one of them                         | (`enrolment.token`)
"""

import asyncio
import hashlib
import socket
import ssl
from datetime import date
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.requests import ClientDisconnect

from fedtalk_ray.coordinator.door import Door
from fedtalk_ray.coordinator.gate import Conflict, GateAway, Unasked
from fedtalk_ray.coordinator.newest_list import NewestList
from fedtalk_ray.coordinator.quota import Overfull
from fedtalk_ray.coordinator.readers import Readers
from fedtalk_ray.coordinator.served import ServedFiles
from fedtalk_ray.enrolment.caller import (
    COUNT,
    EPOCH,
    SITE,
    Called,
    MembershipOver,
    OldRequest,
    UnknownCaller,
    signed_by,
)
from fedtalk_ray.enrolment.coordinator_files import CoordinatorFiles
from fedtalk_ray.enrolment.invite import LARGEST_REQUEST, read_request
from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.enrolment.token import Token
from fedtalk_ray.outputs import OutputError
from fedtalk_ray.privacy.protocol import STAGES
from fedtalk_ray.privacy.wire import MalformedMessage

BYTES = "application/octet-stream"

BODY_S, STRANGERS_BODY_S = 300.0, 5.0
"""Seconds that a member's body may take, and a stranger's."""

MOST_ASKING = 64
"""Strangers whose requests for membership are being read; one more, and the oldest is let go."""


class GateAsked(Protocol):
    """What of the gate (`coordinator.gate`) is asked for sites: `SITES_ASK`. It raises as the gate does, and
    `GateAway`."""

    async def epoch(self) -> bytes: ...
    async def hear(self, called: Called) -> None: ...
    async def offered(self) -> bytes | None: ...
    async def next_order(self, site: str) -> bytes | None: ...
    async def room_for(self, site: str, exchange: int, stage: str) -> int: ...
    async def take(self, site: str, exchange: int, stage: str, body: bytes) -> None: ...
    async def released(self) -> bytes | None: ...


def make_app(gate: GateAsked, files: CoordinatorFiles, served: ServedFiles) -> "StrangersLeave":
    """The application over one gate."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    strangers: dict[asyncio.Timeout, None] = {}
    newest = NewestList(files)
    readers = Readers(gate.released)
    drawn: list[bytes] = []

    async def epoch() -> bytes:
        # Asked once: a gate has one, and no stranger's request may reach it.
        if not drawn:
            drawn.append(await gate.epoch())
        return drawn[0]

    @app.exception_handler(GateAway)
    async def away(request: Request, error: GateAway) -> Response:
        return JSONResponse({"detail": "the coordinator is away; try again"}, 503)

    @app.exception_handler(Overfull)
    async def overfull(request: Request, error: Overfull) -> Response:
        return JSONResponse({"detail": str(error)}, 429)

    async def caller(request: Request) -> Called:
        sent, site = request.headers, request.headers.get(SITE, "")
        try:
            membership = newest.membership()
            if site in membership.revoked:
                raise MembershipOver("membership was revoked")
            today, member = date.today().isoformat(), membership.member(site)
            called = signed_by(member, sent, request.method, request.url.path, await epoch(), today)
            # Of a request that came before too: with the last count the member signs again.
            request.scope[KNOWN] = True
            await gate.hear(called)
            return called
        except MembershipOver as error:
            raise HTTPException(403, str(error)) from None
        except UnknownCaller as error:
            # The same for all whom nobody knows; without the epoch no member could sign.
            told = {EPOCH: (await epoch()).hex()}
            if isinstance(error, OldRequest) and error.last is not None:
                told[COUNT] = str(error.last)
            raise HTTPException(401, "not a member's request", told) from None

    @app.get("/v1/authority")
    async def authority() -> Response:
        return Response(files.authority.read_bytes(), media_type="application/x-pem-file")

    @app.post("/v1/requests")
    async def requests(request: Request) -> Response:
        if len(strangers) >= MOST_ASKING:
            oldest = next(iter(strangers))
            del strangers[oldest]
            if not oldest.expired():
                oldest.reschedule(asyncio.get_running_loop().time())
        limit = asyncio.timeout(STRANGERS_BODY_S)
        strangers[limit] = None
        try:
            body = await body_of(request, LARGEST_REQUEST, limit)
        finally:
            strangers.pop(limit, None)
        try:
            said = kept_request(files, newest, body)
        except EnrolmentError as error:
            raise HTTPException(400, str(error)) from None
        except OutputError:
            raise HTTPException(503, "the coordinator has no room for requests; try again later") from None
        return JSONResponse({"detail": said}, 202)

    @app.get("/v1/members")
    async def members(request: Request) -> Response:
        await caller(request)
        found = newest.signed()
        tag = f'"{hashlib.sha256(found).hexdigest()}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag})
        return Response(found, media_type=BYTES, headers={"etag": tag})

    @app.get("/v1/offer")
    async def offer(request: Request) -> Response:
        await caller(request)
        found = await gate.offered()
        return Response(status_code=204) if found is None else Response(found, media_type=BYTES)

    @app.get("/v1/files/{digest}")
    async def file(request: Request, digest: str) -> Response:
        await caller(request)
        place = served.find(digest)
        if place is None:
            raise HTTPException(404, "no such file")
        return FileResponse(place, media_type=BYTES)

    def reader(request: Request) -> None:
        try:
            token = Token.parse(request.headers.get("authorization", "").removeprefix("Bearer "))
            token.check(newest.authority, date.today().isoformat())
        except EnrolmentError:
            raise HTTPException(401, "not a token of this federation's authority, or its day is over") from None
        if token.name in newest.membership().revoked:
            raise HTTPException(403, "the token was revoked")
        request.scope[KNOWN] = True
        readers.quota.count(token.name)

    @app.get("/v1/released")
    async def released(request: Request) -> Response:
        reader(request)
        found = await readers.order()
        return Response(status_code=204) if found is None else Response(found, media_type=BYTES)

    @app.get("/v1/released/{digest}")
    async def part(request: Request, digest: str) -> Response:
        reader(request)
        place = served.find(digest) if await readers.may_fetch(digest) else None
        if place is None:
            raise HTTPException(404, "no such file")
        return FileResponse(place, media_type=BYTES)

    @app.post("/v1/next")
    async def following(request: Request) -> Response:
        called = await caller(request)
        found = await gate.next_order(called.site)
        return Response(status_code=204) if found is None else Response(found, media_type=BYTES)

    @app.post("/v1/replies/{exchange}/{stage}")
    async def replies(request: Request, exchange: int, stage: str) -> Response:
        called = await caller(request)
        if stage not in ("train", *STAGES):
            raise HTTPException(404, "no such stage")
        if not (room := await gate.room_for(called.site, exchange, stage)):
            raise HTTPException(410, "that is not asked, or not any more")
        body = await body_of(request, room, asyncio.timeout(BODY_S))
        if hashlib.sha256(body).digest() != called.body:
            raise HTTPException(400, "the body is not the one that was signed")
        try:
            await gate.take(called.site, exchange, stage, body)
        except Unasked:
            raise HTTPException(410, "that is not asked, or not any more") from None
        except Conflict:
            raise HTTPException(409, "another reply to it came before") from None
        except MalformedMessage as error:
            raise HTTPException(400, str(error)) from None
        return Response(status_code=200)

    return StrangersLeave(app)


def kept_request(files: CoordinatorFiles, newest: NewestList, data: bytes) -> str:
    """Keeps a request for membership; what there is to say about it, empty as a rule. Raises `EnrolmentError` for what
    is none, or made with a code whose day is over, `Overfull` where too many wait, `OutputError` on a full disk."""
    asked, today = read_request(data, newest.authority), date.today().isoformat()
    member = newest.membership().member(asked.client)
    if member is not None and member.key == asked.key and member.until >= today:
        return ""
    if asked.until < today:
        raise EnrolmentError(f"the code of {asked.client} ran out on {asked.until}; ask the authority for another")
    if not files.keep_request(data, asked, today):
        raise Overfull("too many requests wait for the authority; try again later")
    if member is None or member.key == asked.key:
        return ""
    return (
        f"{asked.client} is a member with another key; unless this invite is for a new one (--new-key), it was used "
        "already: ask the authority for another"
    )


KNOWN = "fedtalk.known"
"""In a request's scope: that its caller is a member, or has a token."""


class StrangersLeave:
    """Closes the connection after every answer to somebody who is no member and has no token, whatever was asked."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and KNOWN not in scope:
                message = message | {"headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, answer)


async def body_of(request: Request, largest: int, limit: asyncio.Timeout) -> bytes:
    """The body, of its stated length. Raises `HTTPException` for one without a length, or a larger one, unread, and for
    one that does not come within the limit."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        raise HTTPException(411, "a body needs its length")
    if int(length) > largest:
        raise HTTPException(413, f"{largest} bytes at most")
    body = bytearray()
    try:
        async with limit:
            async for chunk in request.stream():
                body += chunk
                if len(body) > largest:
                    raise HTTPException(413, f"{largest} bytes at most")
    except TimeoutError:
        raise HTTPException(408, "the body took too long") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body did not come") from None
    return bytes(body)


def open_door(gate: GateAsked, files: CoordinatorFiles, served: ServedFiles, listening: socket.socket) -> Door:
    """HTTPS on a listening socket, with the certificate that the authority gave; nothing before TLS 1.2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.tls_certificate, files.tls_key)
    config = uvicorn.Config(
        make_app(gate, files, served),
        http="h11",
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        h11_max_incomplete_event_size=16 << 10,
    )
    return Door(listening, config, context)
