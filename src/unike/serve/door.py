"""The door of a service with several replicas: each request is handed to one of them, and to another if that one ends.

Asked again is what changes nothing: readings, and completions of which no byte has been sent. A change of edits is
never sent twice, because nobody knows how far a replica came with it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unike.serve.errors import ApiError
from unike.serve.guard import ASKING, OPEN_TO_ALL
from unike.serve.metrics import Meter
from unike.serve.settings import Settings

TRIES = 3
"""Replicas that a request is handed to before it is given up: what ends every one that answers it ends no more."""

PAUSE = 0.2
"""Seconds between them."""

SPARE = 5.0
"""Seconds longer than a replica waits for an answer that the door waits for the replica."""

HEALTH = 5.0
"""Seconds within which a replica says that it is well."""

ABOUT = "unike.about"
"""The last message of a replica: what its own guard knows of the request, for the log and the metrics of the door."""

CARRIED = (
    "type",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)
"""What of a request's ASGI scope goes to a replica; the rest belongs to this process."""

Ask = Callable[[Scope, bytes], Any]
"""Hands a request to a replica; what comes back are the messages of its answer, as they come, with ``cancel()``."""


class Door:
    """An ASGI app that answers by its replicas.

    Args:
        ask: Hands a request to a replica.
        everyone: Asks all of them for their metrics, by their names.
        lost: Exceptions that say that a replica has ended.
        settings: Limits; those of one replica.
        meter: The door's own.
    """

    def __init__(
        self,
        ask: Ask,
        everyone: Callable[[], Awaitable[dict[str, bytes]]],
        lost: tuple[type[Exception], ...],
        settings: Settings,
        meter: Meter,
    ) -> None:
        self.ask, self.everyone, self.lost, self.settings, self.meter = ask, everyone, lost, settings, meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            ApiError: No replica did.
        """
        if scope["type"] != "http":
            return await _live(receive, send)
        if scope["path"] == "/metrics" and scope["method"] == "GET":
            scope["route"] = SimpleNamespace(path="/metrics")
            texts = {"door": self.meter.text()} | await self.everyone()
            return await Response(joined(texts), media_type=CONTENT_TYPE_LATEST)(scope, receive, send)
        body = await _body(receive)
        left = asyncio.ensure_future(_left(receive))
        answer = _Answer(scope, send)
        try:
            await self._answered(scope, body, left, answer)
        finally:
            left.cancel()
            with suppress(asyncio.CancelledError):
                await left

    async def _answered(self, scope: Scope, body: bytes, left: asyncio.Future[None], answer: _Answer) -> None:
        carried = {key: scope[key] for key in CARRIED if key in scope}
        until = time.monotonic() + self._patience(scope)
        for attempt in range(1, TRIES + 1):
            pieces = self.ask(carried, body)
            try:
                return await _pass_on(pieces, answer, left, until)
            except self.lost as error:
                if answer.is_over:
                    return None
                if answer.has_begun:
                    return await answer.broken_off()
                if not is_repeatable(scope):
                    raise ApiError(
                        503,
                        "a replica ended before it said whether the change was made; see GET /v1/log, then try again",
                    ) from error
                answer.tried(attempt)
                await asyncio.sleep(PAUSE)
            finally:
                pieces.cancel()
        raise ApiError(503, f"{TRIES} replicas ended while they answered this", headers={"retry-after": "10"})

    def _patience(self, scope: Scope) -> float:
        """Seconds until an answer has to begin."""
        if scope["path"] in OPEN_TO_ALL:
            return HEALTH
        return SPARE + (self.settings.timeout if is_repeatable(scope) else self.settings.edit_timeout)


def is_repeatable(scope: Scope) -> bool:
    """Whether a request may be handed on a second time: it changes nothing."""
    return scope["method"] in ("GET", "HEAD") or scope["path"] in ASKING


async def _pass_on(pieces: AsyncIterator[Message], answer: _Answer, left: asyncio.Future[None], until: float) -> None:
    """Send on what a replica says.

    Raises:
        ApiError: It begins too late, or nobody waits for it any more.
    """
    while True:
        piece = asyncio.ensure_future(_next(pieces))
        try:
            patience = None if answer.has_begun else max(0.0, until - time.monotonic())
            awaited: set[asyncio.Future[Any]] = (
                {piece} if answer.is_over else {piece, left}
            )  # what comes behind an answer is for the log
            done, _ = await asyncio.wait(awaited, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if piece not in done:
                raise ApiError(499, "the client left") if done else _too_late()
            message = piece.result()
        finally:
            piece.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await piece
        if message is None:
            return
        await answer.say(message)


async def _next(pieces: AsyncIterator[Message]) -> Message | None:
    return await anext(pieces, None)


def _too_late() -> ApiError:
    return ApiError(504, "no replica answered in time; try again", code="timeout", headers={"retry-after": "10"})


class _Answer:
    """What is sent to a client: nothing before the first byte of the body is there."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self._send = scope, send
        self._head: Message | None = None
        self._is_stream = False
        self.has_begun = self.is_over = False

    def tried(self, times: int) -> None:
        """Note for the log that a replica was lost; what it had said is forgotten."""
        self._head = None
        self.scope["state"]["about"]["lost"] = times

    async def say(self, message: Message) -> None:
        """Send a message of a replica on, or take note of it."""
        if message["type"] == ABOUT:
            self.scope["state"]["about"].update(message["about"])
            if message["route"] is not None:
                self.scope["route"] = SimpleNamespace(path=message["route"])
        elif message["type"] == "http.response.start":
            self._head = message
            kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            self._is_stream = any(kind.startswith(b"text/event-stream") for kind in kinds)
        else:
            if self._head is not None:
                self.has_begun = True
                head, self._head = self._head, None
                await self._send(head)
            self.is_over = not message.get("more_body", False)
            await self._send(message)

    async def broken_off(self) -> None:
        """Tell a client that what it was reading does not go on.

        Raises:
            ConnectionError: It reads no stream, so all that can be done is to close the connection.
        """
        self.scope["state"]["about"]["lost"] = "while it was streaming"
        if not self._is_stream:
            raise ConnectionError("a replica ended in the middle of an answer")
        error = ApiError(503, "the replica that wrote this ended; ask again").body
        event = f"data: {json.dumps(error, separators=(',', ':'))}\n\n".encode()
        await self._send({"type": "http.response.body", "body": event, "more_body": False})


async def _body(receive: Receive) -> bytes:
    """All of a request, whose size and time the guard limits.

    Raises:
        ApiError: The client left before it was there.
    """
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(499, "the client left")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _left(receive: Receive) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _live(receive: Receive, send: Send) -> None:
    """Nothing is to be done when the server starts or ends: replicas have a life of their own."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


class _Families:
    """Metrics, as `generate_latest` asks for them."""

    def __init__(self, families: dict[str, Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families.values()


def joined(texts: dict[str, bytes]) -> bytes:
    """Metrics of several processes as one text, each with the name of its process as the label ``replica``."""
    families: dict[str, Metric] = {}
    for name, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            whole.samples += [each._replace(labels={"replica": name} | dict(each.labels)) for each in family.samples]
    return generate_latest(_Families(families))


async def replayed(app: ASGIApp, scope: Scope, body: bytes) -> AsyncIterator[Message]:
    """The messages of an app's answer to a request that is all there, and at last what its guard noted.

    When nobody reads on, the app is told that its client has left.
    """
    said: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    given = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        for message in given:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    work = asyncio.ensure_future(app(scope, receive, said.put))
    work.add_done_callback(lambda _: said.put_nowait(None))
    try:
        while (message := await said.get()) is not None:
            yield message
        await work
        about = scope.get("state", {}).get("about", {})
        yield {"type": ABOUT, "about": about, "route": getattr(scope.get("route"), "path", None)}
    finally:
        gone.set()
        if not work.done():
            work.cancel()
