"""What stands before the page: signing in with a key, and what of gradio is there at all.

Gradio answers at many addresses that the studio has no use for: files, proxies, histories, other programs' calls. Those
that the page needs are named here, and nothing else is reached. A browser is told to load nothing from elsewhere.
"""

from __future__ import annotations

import os
import re
import traceback
from contextlib import suppress
from html import escape
from pathlib import Path
from urllib.parse import parse_qs, unquote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unike.serve.errors import LOG, ApiError, invalid, told, too_many
from unike.serve.guard import Answer, error_response
from unike.serve.keys import Keys
from unike.serve.sessions import COOKIE, LASTS, LOGIN, STUDIO, Sessions
from unike.serve.studio.sent import Sent, is_upload

NEEDED = re.compile(
    r"/?|/config/?|/theme\.css|/favicon\.ico|/manifest\.json"
    r"|/(assets|static|svelte)/.*"
    r"|/gradio_api/(info|startup-events|reset|cancel|upload|upload_progress|app_id)/?"
    r"|/gradio_api/queue/(join|data)|/gradio_api/heartbeat/\w+|/gradio_api/file=.*"
)
"""Paths of gradio's below the studio's that the page needs."""

FILE, JOIN, UPLOAD = "/gradio_api/file=", "/gradio_api/queue/join", "/gradio_api/upload"

LONGEST = 255
"""Bytes of a file's name, where it is longest."""

MOST_KEPT, SMALLEST = 1 << 30, 1 << 16
"""Bytes of all pictures of visitors, after which no more are taken, and what each counts for at least."""

ELSEWHERE = re.compile(rb"""<meta\s+(?:property="og|name="twitter)[^>]*>|<link rel="manifest"[^>]*>""")
"""What the page says of other places."""

ICON = b'<link rel="icon" href="data:,">'
"""None; else browsers ask for one."""

HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


class Door:
    """Around gradio's app.

    Args:
        app: Gradio's.
        sent: Reads what the page's buttons send.
    """

    def __init__(self, app: ASGIApp, *, sent: Sent) -> None:
        self.app, self.sent = app, sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through what the page needs."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        answer = Answer(send, HEADERS)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            if NEEDED.fullmatch(path) is None or not is_name(path) or not self._may_show(path):
                raise ApiError(404, f"there is nothing at {ascii(scope['path'])[:80]}")
            if path.rstrip("/") == JOIN:
                receive = _again(self.sent.read(await _whole(receive)), receive)
            if path.rstrip("/") == UPLOAD:
                await run_in_threadpool(check_room, self.sent.uploads)
                await self._take_in(scope, receive, answer)
            else:
                await self._pass_on(path, scope, receive, answer)
        except ApiError as error:
            await error_response(error)(scope, receive, answer)
        except ClientDisconnect:  # while it was sending: there is nobody to be told
            return
        except Exception as error:  # this stands within gradio's app, whose own 500 would keep it from `Guard`
            if answer.status is not None:
                raise
            LOG.error("request failed\n%s", traceback.format_exc())
            await error_response(told(RuntimeError(error)))(scope, receive, answer)

    async def _pass_on(self, path: str, scope: Scope, receive: Receive, answer: Send) -> None:
        """Let gradio answer."""
        try:
            await self.app(scope, receive, _Trimmed(answer) if path in ("", "/") else answer)
        except RuntimeError as error:
            if not isinstance(error.__cause__, HTTPException):
                raise
            # Of a session that is over, which a page still has that was loaded before, gradio says so, and then fails.
            await answer({"type": "http.response.body", "body": b"", "more_body": False})

    async def _take_in(self, scope: Scope, receive: Receive, answer: Send) -> None:
        """Let gradio keep a picture.

        Raises:
            ApiError: What is sent is no form with a file, of which gradio makes exceptions of all sorts.
        """
        held = _Held(answer)
        try:
            await self.app(scope, receive, held)
        except (ApiError, ClientDisconnect, OSError):  # a full disk is no fault of the visitor's
            raise
        except Exception as error:  # parsers of forms raise no error of their own: AttributeError, KeyError, ...
            raise invalid(f"the form that was sent cannot be read ({type(error).__name__})") from None
        if held.status >= 400:
            said = " ".join(held.body.decode(errors="replace").split())[:200]
            raise ApiError(held.status, said or "the form that was sent cannot be read")

    def _may_show(self, path: str) -> bool:
        """Whether a path names no file, or a picture that a visitor sent."""
        return not path.startswith(FILE) or is_upload(unquote(path.removeprefix(FILE)), self.sent.uploads)


def is_name(path: str) -> bool:
    """Whether a path can name a file."""
    return "\0" not in path and all(len(part.encode(errors="replace")) <= LONGEST for part in path.split("/"))


def check_room(folder: Path) -> None:
    """Refuse pictures of visitors while there are too many.

    Raises:
        ApiError: As it says; they go after an hour.
    """
    taken = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it is gone meanwhile
                taken += max(SMALLEST, os.stat(os.path.join(place, name)).st_size)
    if taken > MOST_KEPT:
        raise too_many("there are too many pictures of visitors here; they go after an hour")


async def _whole(receive: Receive) -> bytes:
    """A request's body; the guard has seen to it that it is not too large."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    """What sends a body that was read, and then what comes after it."""
    waiting = [body]

    async def again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again


class _Held:
    """What gradio says of a picture that was sent: held back if it is no good."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status, self.body = 0, b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        if self.status < 400:
            await self._send(message)
        else:
            self.body += message.get("body", b"")


class _Trimmed:
    """The page, without what names other places: an icon of gradio's, and a manifest that is not there."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False) or self._start is None:
            return
        if self._start["status"] == 200:
            self._body = ELSEWHERE.sub(b"", self._body).replace(b"</head>", ICON + b"</head>", 1)
            MutableHeaders(scope=self._start)["content-length"] = str(len(self._body))
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": self._body})


def login_routes(keys: Keys, sessions: Sessions) -> APIRouter:
    """``/studio/login`` and ``/studio/logout``."""
    router = APIRouter()

    @router.get(LOGIN)
    def ask_for_key() -> Response:
        return _page() if keys else _to(f"{STUDIO}/")

    @router.post(LOGIN)
    async def sign_in(request: Request) -> Response:
        holder = keys.holder(f"Bearer {_key(await request.body())}")
        if holder is None:
            return _page("this is none of the server's keys; whoever runs it has them", 401)
        response = _to(f"{STUDIO}/")
        secure = request.url.scheme == "https"
        response.set_cookie(
            COOKIE, sessions.begin(holder), LASTS, path=STUDIO, secure=secure, httponly=True, samesite="strict"
        )
        return response

    @router.post(f"{STUDIO}/logout")
    def sign_out(request: Request) -> Response:
        sessions.end(request.headers.get("cookie"))
        response = _to(LOGIN)
        response.delete_cookie(COOKIE, path=STUDIO)
        return response

    return router


def _key(form: bytes) -> str:
    """What was written into the page's one field; nothing if something else was sent."""
    try:
        return parse_qs(form.decode(errors="replace"), max_num_fields=1).get("key", [""])[0]
    except ValueError:
        return ""


def _to(address: str) -> Response:
    return RedirectResponse(address, 303)


def _page(problem: str = "", status: int = 200) -> Response:
    """The page that asks for a key; it needs no script."""
    said = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    return HTMLResponse(LOGIN_PAGE.replace("<!-- problem -->", said), status, HEADERS | {"cache-control": "no-store"})


LOGIN_PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>unike studio</title>
{ICON.decode()}
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 24rem; margin: 15vh auto; padding: 0 1rem }}
input, button {{ font: inherit; width: 100%; box-sizing: border-box; padding: .6rem; margin: .3rem 0 }}
</style></head><body><main><h1>unike studio</h1>
<form method="post" action="{LOGIN}"><label for="key">Key of this server</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<!-- problem -->
<button>Sign in</button></form></main></body></html>
"""
