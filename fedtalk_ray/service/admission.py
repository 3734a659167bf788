"""Who is let in: before a byte of a body is read, by a token, a body's length, and the page that asks."""

import hmac
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Form
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedtalk_ray.errors import ConfigError

COOKIE, SIGN_IN, MOST_SIGN_IN = "fedtalk_token", "/sign-in", 4096
MOST_PARSED = 1 << 20
"""Bytes of a body that is no form of files: it is parsed at once, while everybody else waits."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")

FORM = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>fedtalk: sign in</title>
<style>body{font:1rem/1.5 system-ui,sans-serif;max-width:24rem;margin:4rem auto;padding:0 1rem}
input,button{font:inherit;padding:.5rem;width:100%;box-sizing:border-box;margin:.25rem 0 1rem}</style>
<main><h1>Sign in</h1><form method="post" action="/sign-in"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required>
<button>Sign in</button></form><p>WHY</p></main></html>"""


def read_tokens(path: Path) -> frozenset[str]:
    """The tokens in a file, one a line. Raises `ConfigError` for none, and for one that is easily guessed."""
    try:
        found = frozenset(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--tokens {path} cannot be read ({error})") from error
    if not found:
        raise ConfigError(f"--tokens {path} holds no token; write one a line, of 16 characters or more")
    if short := [token for token in found if len(token) < 16]:
        raise ConfigError(f"--tokens {path}: {len(short)} of {len(found)} tokens have under 16 characters")
    return found


class Known:
    """The tokens of those who are let in; none for everybody who reaches this."""

    def __init__(self, tokens: frozenset[str]) -> None:
        self._tokens = tokens

    def everybody(self) -> bool:
        return not self._tokens

    def has(self, token: str) -> bool:
        found = [hmac.compare_digest(token.encode(), known.encode()) for known in self._tokens]
        return any(found)


class AtTheDoor:
    """Lets a request in that has a token, a body of a known and bearable length, and was not sent by another site's
    page behind its reader's back."""

    def __init__(self, app: ASGIApp, known: Known, most_bytes: int) -> None:
        self._app, self._known, self._most = app, known, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope.get("method", "GET"), scope["path"], headers)

        async def framed_by_nobody(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["content-security-policy"] = "frame-ancestors 'self'"
            await send(message)

        if refusal is None:
            await self._app(scope, receive, framed_by_nobody)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, framed_by_nobody)

    def _refusal(self, method: str, path: str, headers: dict[str, str]) -> Response | None:
        host = headers.get("host", "")
        if self._known.everybody() and _name_of(host) not in LOOPBACK:
            # Another site's name that was turned to this machine: its page would be taken for one of ours.
            return JSONResponse({"detail": f"this is no service of {host!r}; give it tokens to be asked by name"}, 403)
        if "origin" in headers and headers["origin"].partition("://")[2] != host:
            return JSONResponse({"detail": "another site's page asks"}, 403)
        if ":/" in path:
            # Gradio would fetch it, and hand it out as ours.
            return JSONResponse({"detail": "nothing of another place is handed out"}, 403)
        signs_in = path == SIGN_IN and method == "POST"
        if not (self._known.everybody() or signs_in or self._known.has(token_of(headers))):
            if method == "GET" and "text/html" in headers.get("accept", ""):
                return HTMLResponse(FORM.replace("WHY", "Whoever runs this service gives tokens."), 401)
            why = "give a token that this service knows: Authorization: Bearer TOKEN"
            return JSONResponse({"detail": why}, 401, {"www-authenticate": "Bearer"})
        # Chunks would say nothing of how many there are, and outdo the length that stands beside them.
        if "transfer-encoding" in headers:
            return JSONResponse({"detail": "say how long the body is: Content-Length, and no chunks"}, 411)
        length = headers.get("content-length", "")
        if method in ("POST", "PUT", "PATCH") and not length.isdecimal():
            return JSONResponse({"detail": "say how long the body is: Content-Length"}, 411)
        files = headers.get("content-type", "").startswith("multipart/form-data")
        most = MOST_SIGN_IN if signs_in else self._most if files else min(MOST_PARSED, self._most)
        if length.isdecimal() and (len(length) > 15 or int(length) > most):
            return JSONResponse({"detail": f"the body is longer than {most >> 10} KiB"}, 413)
        return None


def token_of(headers: dict[str, str]) -> str:
    """A program's token, or a browser's; empty where there is none."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")


def sign_in(known: Known) -> APIRouter:
    """Where a browser gives its token once, and keeps it in a cookie that no script reads."""
    router = APIRouter(include_in_schema=False)

    @router.post(SIGN_IN)
    def give(token: Annotated[str, Form(max_length=1000)]) -> Response:
        if not known.has(token.strip()):
            return HTMLResponse(FORM.replace("WHY", "That is no token of this service."), 401)
        there = RedirectResponse("/", 303)
        there.set_cookie(COOKIE, token.strip(), httponly=True, samesite="lax")
        return there

    return router


def _name_of(host: str) -> str:
    """The name in a Host header, without the port; empty for what is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "") if "@" not in host else ""
    except ValueError:
        return ""
