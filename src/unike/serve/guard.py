"""The door: who may come in, with how much, for how long; what came of it is counted and logged, in one line each."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unike.serve.bodies import DRAINED, drain, most_of, too_large
from unike.serve.errors import LOG, ApiError, told, too_many
from unike.serve.keys import ANYONE, Holder, Keys
from unike.serve.metrics import Meter
from unike.serve.sessions import LOGIN, STUDIO, Sessions, is_studio
from unike.serve.settings import Settings

OPEN_TO_ALL = ("/healthz",)
"""Paths that are answered without a key: they tell nothing."""

ASKING = ("/v1/chat/completions",)
"""Where users send something; whatever else is no reading needs an admin's key."""

LOCAL = ("localhost", "127.0.0.1", "::1")


def error_response(error: ApiError) -> JSONResponse:
    """As OpenAI's clients understand it."""
    return JSONResponse(error.body, error.status, error.headers)


class Guard:
    """Around the whole service.

    Args:
        app: The service.
        keys: Whose holders may come in; if there are none, everybody who reaches it may.
        settings: Limits.
        meter: Where requests are counted.
        sessions: Who has signed in to the studio.
    """

    def __init__(
        self, app: ASGIApp, *, keys: Keys, settings: Settings, meter: Meter, sessions: Sessions | None = None
    ) -> None:
        self.app, self.keys, self.settings, self.meter = app, keys, settings, meter
        self.sessions = sessions or Sessions()
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or say why not."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        answer = Answer(send)
        start = time.perf_counter()
        scope.setdefault("state", {})["about"] = {}
        self._open += 1
        self.meter.open.set(self._open)
        try:
            self._check(scope)
            await self.app(scope, await self._limited(scope, receive), answer)
        except ApiError as error:
            await self._say(error, answer, scope, receive)
        except ClientDisconnect:  # while it was sending: there is nobody to be told
            pass
        except Exception:  # a client is told one line, and the log all of it
            LOG.error("request failed\n%s", traceback.format_exc())
            await self._say(told(RuntimeError()), answer, scope, receive)
        finally:
            self._open -= 1
            self.meter.open.set(self._open)
            self._write_down(scope, answer.status, time.perf_counter() - start)

    async def _say(self, error: ApiError, answer: Answer, scope: Scope, receive: Receive) -> None:
        if answer.status is None:
            await error_response(error)(scope, receive, answer)

    # ------------------------------------------------------------------ who

    def _check(self, scope: Scope) -> None:
        """Refuse who has no business here.

        Raises:
            ApiError: As it says.
        """
        path, headers = scope["path"], Headers(scope=scope)
        if path in OPEN_TO_ALL:
            return
        if self._open > self.settings.max_open:
            raise too_many(f"{self._open - 1} requests are open; try again later")
        if self.keys and is_studio(path):
            self._check_visitor(scope, headers)
        elif self.keys:
            holder = self.keys.holder(headers.get("authorization"))
            if holder is None:
                raise ApiError(
                    401,
                    "a key is needed, and this is none: Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
            scope["state"]["holder"] = holder
            if holder.role != "admin" and scope["method"] not in ("GET", "HEAD") and path not in ASKING:
                raise ApiError(403, "edits are changed with an admin's key, and this is a user's")
        else:
            scope["state"]["holder"] = ANYONE
            if not self.settings.any_host:
                self._check_near(headers)

    def _check_visitor(self, scope: Scope, headers: Headers) -> None:
        """Of the studio's visitors, let in those who have signed in; what they may change is the studio's matter.

        Raises:
            ApiError: Nobody has signed in, or a page of another site makes the browser send this.
        """
        holder = self.keys.holder(headers.get("authorization")) or self.sessions.holder(headers.get("cookie"))
        scope["state"]["holder"] = holder
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin and origin.partition("://")[2] != headers.get("host"):
            raise ApiError(403, f"a page of {origin[:80]!r} may not use the studio")
        if holder is None and scope["path"] != LOGIN:
            if scope["method"] == "GET" and scope["path"].rstrip("/") == STUDIO:
                raise ApiError(303, f"sign in at {LOGIN}", headers={"location": LOGIN})
            raise ApiError(401, f"sign in at {LOGIN}", code="invalid_api_key")

    def _check_near(self, headers: Headers) -> None:
        """Without keys, refuse requests that a page of another site makes a browser send.

        Raises:
            ApiError: It is addressed to another host, or comes from another site's page.
        """
        host = headers.get("host", "")
        if _hostname(f"//{host}") not in LOCAL:
            raise ApiError(403, f"without keys, requests are for this machine, and not for {host[:80]!r}")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise ApiError(403, f"without keys, a page of {origin[:80]!r} may not ask; set keys up: --api-key-file")

    # ------------------------------------------------------------------ how much

    async def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """What a request sends, as long as it is not too much and does not take too long.

        Raises:
            ApiError: It says that it is too much.
        """
        headers, until = Headers(scope=scope), time.monotonic() + self.settings.timeout
        most, drained = most_of(scope["path"], self.settings), DRAINED * self.settings.max_body
        length = headers.get("content-length", "0")
        if not length.isdigit() or len(length) > 18 or int(length) > most:
            if length.isdigit() and len(length) < 18 and int(length) <= drained and "expect" not in headers:
                await drain(receive, drained)
            raise too_large(most)
        seen, whole = 0, False

        async def limited() -> Message:
            nonlocal seen, whole
            if whole:  # what comes now is that the client leaves, and nobody knows when
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except asyncio.TimeoutError:
                raise ApiError(
                    408, "the request took too long to arrive", code="timeout", headers={"connection": "close"}
                ) from None
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if seen > most:
                    if not whole:
                        await drain(receive, drained)
                    raise too_large(most)
            return message

        return limited

    # ------------------------------------------------------------------ what came of it

    def _write_down(self, scope: Scope, status: int | None, seconds: float) -> None:
        studio = is_studio(scope["path"])
        route = STUDIO if studio else getattr(scope.get("route"), "path", "other")
        answered = status or 499  # the client left
        self.meter.requests.labels(route, str(answered)).inc()
        self.meter.seconds.labels(route).observe(seconds)
        if answered < 400 and (scope["path"] in OPEN_TO_ALL or (studio and scope["method"] == "GET")):
            return
        about = [f"{key}={ascii(str(value))[1:-1][:200]}" for key, value in scope["state"]["about"].items()]
        line = " ".join([scope["method"], ascii(scope["path"])[1:-1][:200], str(answered), f"{seconds:.3f}s", *about])
        LOG.info("%s", line)


class Answer:
    """What is sent, and with which status; None as long as nothing is.

    Args:
        send: Where it goes.
        headers: What its head says besides.
    """

    def __init__(self, send: Send, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self._send, self._headers = send, headers
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message).update(self._headers)
        await self._send(message)


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def holder_of(request: Any) -> Holder:
    """Who sends a request that was let in."""
    found: Holder = request.scope["state"]["holder"]
    return found


def note(request: Any, **about: object) -> None:
    """Put down what the line about a request is to say."""
    request.scope["state"]["about"].update(about)


def joined(texts: Iterable[str]) -> str:
    """Texts of people in one line of a log, as they cannot break it."""
    return ascii(" | ".join(texts))
