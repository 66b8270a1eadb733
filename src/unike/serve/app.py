"""The service as an ASGI app: OpenAI's chat completions and models, the store, health, and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from unike.core.errors import UnikeError
from unike.core.extras import needing
from unike.core.version import __version__
from unike.data.queries import Query
from unike.serve.asked import Asked, Desk
from unike.serve.chat import ChatRequest, named
from unike.serve.editing import Clerk, edit_routes, set_routes
from unike.serve.engine import Engine, Full
from unike.serve.errors import ApiError, invalid, told, too_many
from unike.serve.guard import Guard, error_response, holder_of, joined, note
from unike.serve.keys import Keys
from unike.serve.metrics import CONTENT_TYPE, Meter
from unike.serve.pictures import Pictures
from unike.serve.sessions import Sessions
from unike.serve.sets import Sets
from unike.serve.settings import Settings

if TYPE_CHECKING:
    from unike.editors.base import Editor
    from unike.store import Store

READERS = 4
"""Requests whose pictures are decoded at the same time: each may take some hundred megabytes for a moment."""


def create_app(
    engine: Engine,
    store: Store,
    settings: Settings,
    *,
    editor: Editor[Any],
    keys: Keys | None = None,
    studio: bool = False,
) -> FastAPI:
    """A service; it starts and ends the engine.

    Args:
        engine: With the model.
        store: With the edits.
        settings: What is allowed.
        editor: The method that ``POST /v1/edits`` uses.
        keys: Of those who may use it; None for everybody who reaches it.
        studio: Whether people get a page, too.

    Raises:
        UnikeError: The studio is wanted, and gradio is not installed.
    """
    meter = Meter(engine)
    pictures = Pictures(settings.max_picture, settings.image_folders)
    desk = Desk(engine.backbone, Sets(store, engine.backbone), pictures, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.backbone.check(Query("?"))  # a tokenizer settles with its first text, and then serves several threads
        engine.start()
        yield
        await anyio.to_thread.run_sync(engine.close)
        pictures.close()

    app = FastAPI(title="unike", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.engine, app.state.meter = engine, meter
    keys, sessions = keys or Keys(), Sessions()
    app.add_middleware(Guard, keys=keys, settings=settings, meter=meter, sessions=sessions)
    _tell_errors(app)
    _add_chat(app, engine, desk, meter)
    _add_models(app, desk)
    clerk = Clerk(desk, engine, store, editor, meter)
    app.include_router(edit_routes(clerk))
    app.include_router(set_routes(clerk))

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        alive = engine.is_alive
        return JSONResponse({"status": "ok" if alive else "the engine is not running"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(meter.text(), media_type=CONTENT_TYPE)

    if studio:
        with needing("studio"):
            from unike.serve.studio.page import mount
        mount(app, clerk, keys, sessions)
    return app


def _tell_errors(app: FastAPI) -> None:
    """Whatever goes wrong is told in OpenAI's format."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(UnikeError)
    async def unike_error(request: Request, error: UnikeError) -> Response:
        return error_response(told(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = ascii(request.url.path)[:80]
        says = {404: f"there is nothing at {path}", 405: f"{request.method} is not to be had at {path}"}
        message = says.get(error.status_code, str(error.detail))
        return error_response(ApiError(error.status_code, message, headers=error.headers))

    @app.exception_handler(RequestValidationError)
    async def parameter_error(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return error_response(invalid(f"{name}: {first['msg']}", name))


def _body_of(schema: type[Any]) -> dict[str, Any]:
    """What the API's description says of a body that is read by hand."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema.model_json_schema()}}}}


def _add_chat(app: FastAPI, engine: Engine, desk: Desk, meter: Meter) -> None:
    """``POST /v1/chat/completions``."""
    readers = anyio.CapacityLimiter(READERS)
    fingerprint = engine.backbone.fingerprint()

    @app.post("/v1/chat/completions", openapi_extra=_body_of(ChatRequest))
    async def chat(request: Request) -> Response:
        body = await request.body()
        sent, jobs, edits = await anyio.to_thread.run_sync(desk.read, body, holder_of(request), limiter=readers)
        note(request, edits=edits.label or "none", rows=len(jobs))
        asked = Asked(sent, jobs, edits, fingerprint)
        asked.on_end = lambda: desk.drop(jobs[0].query.image)
        try:
            engine.submit(jobs)
        except Full as error:
            asked.on_end()
            raise too_many(str(error)) from None
        headers = {"x-unike-edits": edits.label} if edits.label else {}
        if sent.stream:
            await _wait(request, asked, asked.first())
            events = _counted(request, desk, asked, meter)
            return StreamingResponse(events, media_type="text/event-stream", headers=_NO_CACHE | headers)
        await _wait(request, asked, asked.all_over())
        _count(request, desk, asked, meter)
        return JSONResponse(asked.completion(), headers=headers)


_NO_CACHE = {"cache-control": "no-cache", "x-accel-buffering": "no"}


async def _wait(request: Request, asked: Asked, work: Coroutine[Any, Any, None]) -> None:
    """Wait for an answer for as long as the client does.

    Raises:
        ApiError: There is none.
    """
    answer = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        # The engine breaks answers off in time, but not while it makes an edit or reads prompts.
        patience = max(0.0, asked.jobs[0].deadline - time.monotonic()) + 1
        done, _ = await asyncio.wait({answer, left}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if answer in done:
            answer.result()
            return
        asked.give_up()
        if left in done:
            raise ApiError(499, "the client left")
        raise ApiError(504, "the answer was not there in time; try again", code="timeout")
    except asyncio.CancelledError:
        asked.give_up()
        raise
    finally:
        for task in (answer, left):
            task.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await task


async def _left(request: Request) -> None:
    """Wait until the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _counted(request: Request, desk: Desk, asked: Asked, meter: Meter) -> AsyncIterator[str]:
    """A stream, counted when it is over, however it ends."""
    try:
        async with aclosing(asked.chunks()) as pieces:
            async for piece in pieces:
                yield piece
    finally:
        _count(request, desk, asked, meter)


def _count(request: Request, desk: Desk, asked: Asked, meter: Meter) -> None:
    usage = asked.usage
    meter.tokens.labels("read").inc(usage["prompt_tokens"])
    meter.tokens.labels("written").inc(usage["completion_tokens"])
    note(request, tokens=f"{usage['prompt_tokens']}+{usage['completion_tokens']}")
    if desk.settings.log_prompts:
        note(request, prompt=joined([asked.jobs[0].query.prompt]), answers=joined(j.decoding.text for j in asked.jobs))


def _add_models(app: FastAPI, desk: Desk) -> None:
    """``GET /v1/models``: the model as it is, and under each set."""
    created = int(time.time())

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "unike"}

    @app.get("/v1/models")
    def models(request: Request) -> dict[str, Any]:
        own, names = desk.settings.name, desk.sets.names(holder_of(request))
        return {"object": "list", "data": [model(own), *(model(f"{own}@{name}") for name in names)]}

    @app.get("/v1/models/{name:path}")
    def one(request: Request, name: str) -> dict[str, Any]:
        chosen = named(name, None, desk.settings)
        if isinstance(chosen, tuple):
            desk.sets.at(*chosen, holder_of(request))
        return model(name)
