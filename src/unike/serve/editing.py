"""The store over HTTP: edits are listed, made, revoked and restored, sets rolled back, the log read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Query as Parameter
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.serve.asked import Desk
from unike.serve.chat import ImageURL, Strict, parsed, read_body
from unike.serve.engine import Engine, Full
from unike.serve.errors import ApiError, invalid, told, too_many
from unike.serve.guard import holder_of, note
from unike.serve.keys import Holder
from unike.serve.metrics import Meter
from unike.serve.pictures import unnamed
from unike.serve.sets import DEFAULT
from unike.store.names import check_fact, checked_text

if TYPE_CHECKING:
    from unike.editors.base import Editor
    from unike.store import Store, Stored
    from unike.store.admission import Admission

AUTHOR = "api"
"""Who is written down where a request does not say."""

Text = Annotated[str, Field(max_length=4096)]


class Why(Strict):
    """Who changes something, and why."""

    set: str = DEFAULT
    author: Text = AUTHOR
    reason: Text = ""


class EditRequest(Why):
    """The body of ``POST /v1/edits``: a fact, as `unike.store.admission.admit` takes it."""

    prompt: Text = Field(min_length=1)
    target: Text = Field(min_length=1)
    image: str | ImageURL | None = None
    tags: tuple[Text, ...] = ()
    replace: bool = False
    max_drift: float | None = Field(None, ge=0, le=1)
    force: bool = False


class RollBack(Strict):
    """The body of ``POST /v1/sets/{name}/roll-back``."""

    version: int = Field(ge=0)
    author: Text = AUTHOR
    reason: Text = ""


SetName = Annotated[str | None, Parameter(max_length=64)]
Limit = Annotated[int, Parameter(ge=1, le=1000)]
Offset = Annotated[int, Parameter(ge=0)]


class Clerk:
    """Who changes the store for requests.

    Args:
        desk: Where pictures and sets are.
        engine: Whose thread makes edits.
        store: The store.
        editor: The method.
        meter: Where changes are counted.
    """

    def __init__(self, desk: Desk, engine: Engine, store: Store, editor: Editor[Any], meter: Meter) -> None:
        self.desk, self.engine, self.store, self.editor, self.meter = desk, engine, store, editor, meter

    async def add(self, body: bytes, holder: Holder) -> Admission:
        """Make an edit between two batches, and put it in force.

        Raises:
            ApiError: The request makes no sense, or there is too much to do, or it took too long.
        """
        request = await run_in_threadpool(parsed, EditRequest, read_body(body))
        check_change(request.set, holder)
        check_fact(request.prompt, request.target)
        most = self.desk.settings.max_question
        if len(request.prompt) > most:
            raise invalid(f"the prompt has more than {most:,} characters; shorten it", "prompt")
        self.store.check_writable()
        image = await run_in_threadpool(self._keep, request)
        try:
            future = self.engine.between(lambda: self._admit(Query(request.prompt, image, request.target), request))
        except Full as error:
            self.desk.drop(image)
            raise too_many(str(error)) from None
        future.add_done_callback(lambda _: self.desk.drop(image))  # and not before: it may go on when nobody waits
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.desk.settings.edit_timeout)
        except asyncio.TimeoutError:
            raise ApiError(504, "the edit was not made in time; it may still come into force", code="timeout") from None
        except asyncio.CancelledError:
            if not future.cancelled():
                raise
            raise ApiError(503, "the server is shutting down; try again") from None

    def _keep(self, request: EditRequest) -> Any:
        url = request.image.url if isinstance(request.image, ImageURL) else request.image
        return None if url is None else self.desk.pictures.keep(url)

    def _admit(self, fact: Query, request: EditRequest) -> Admission:
        """In the engine's thread."""
        from unike.store.admission import admit_all

        terms = request.model_dump(include={"set", "author", "reason", "replace", "max_drift", "force"})
        with unnamed(fact.image):
            (found,) = admit_all(self.store, self.desk.backbone, self.editor, [fact], tags=request.tags, **terms)
        return found

    def change(self, action: str, work: Callable[[], int], **texts: str) -> dict[str, int]:
        """Change a set.

        Args:
            action: What is done, for the metrics.
            work: Does it.
            **texts: Who does it and why.

        Raises:
            ApiError: It cannot be changed so.
            UnikeError: A text cannot be kept.
        """
        for what, text in texts.items():
            checked_text(what, text, empty=what != "author")
        try:
            version = work()
        except UnikeError as error:
            raise told(error, 409) from None
        self.meter.changes.labels(action).inc()
        return {"version": version}

    def find(self, name: str, holder: Holder) -> Stored:
        """An edit by its id, or the beginning of it.

        Raises:
            ApiError: There is none, or there are several.
        """
        try:
            return self.store.find(name, holder.sets)
        except UnikeError as error:
            raise told(error, 404) from None

    def shown(self, stored: Stored) -> dict[str, Any]:
        """An edit as JSON has it."""
        return {"object": "edit", **stored.model_dump(mode="json"), "fits": self.desk.sets.fits(stored)}

    def members(self, name: str, version: int | None, holder: Holder) -> list[Stored]:
        """What is in force in a set.

        Raises:
            ApiError: There is no such set or version.
        """
        self.desk.sets.version(name, holder)
        try:
            return self.store.members(name, version)
        except UnikeError as error:
            raise told(error, 404) from None

    def in_force_in(self, stored: Stored, holder: Holder) -> list[str]:
        """The sets in which an edit is in force, of those that someone sees."""
        names = self.desk.sets.names(holder)
        return [name for name in names if stored.id in {each.id for each in self.store.members(name)}]


def check_change(set: str, holder: Holder) -> None:
    """Refuse to change a set with a key that is not good for it.

    Raises:
        ApiError: As it says; it is not told whether there is such a set.
    """
    if not holder.sees(set):
        mine = ", ".join(sorted(holder.sets or ()))
        raise ApiError(403, f"this key is not for the set {set[:80]!r}, but for: {mine}; name one of these as set")


def edit_routes(clerk: Clerk) -> APIRouter:
    """``/v1/edits``."""
    router = APIRouter(prefix="/v1/edits")

    @router.get("")
    def listed(
        request: Request,
        set: SetName = None,
        tag: str | None = None,
        text: str | None = None,
        limit: Limit = 100,
        offset: Offset = 0,
    ) -> dict[str, Any]:
        holder = holder_of(request)
        found = clerk.store.all(tag=tag, text=text, within=holder.sets)
        if set is not None:
            wanted = {each.id for each in found}
            found = [each for each in clerk.members(set, None, holder) if each.id in wanted]
        page = found[offset : offset + limit]
        data = [clerk.shown(each) for each in page]
        return {"object": "list", "data": data, "total": len(found), "has_more": offset + limit < len(found)}

    @router.get("/{name}")
    def one(request: Request, name: str) -> dict[str, Any]:
        holder = holder_of(request)
        stored = clerk.find(name, holder)
        return clerk.shown(stored) | {"in_force_in": clerk.in_force_in(stored, holder)}

    _add_changes(router, clerk)
    return router


def _add_changes(router: APIRouter, clerk: Clerk) -> None:
    """What needs an admin's key, where keys are asked for."""

    @router.post("")
    async def add(request: Request) -> JSONResponse:
        found = await clerk.add(await request.body(), holder_of(request))
        clerk.meter.changes.labels(found.status).inc()
        if found.status == "refused":
            note(request, edit="refused")
            body = ApiError(409, " ".join(found.why.split()), code="conflict" if found.conflicts else "refused").body
            body["error"] |= {"conflicts": [each.id for each in found.conflicts]}
            return JSONResponse(body, 409)
        assert found.stored is not None
        note(request, edit=found.stored.id)
        return JSONResponse(
            clerk.shown(found.stored) | found.model_dump(mode="json", exclude={"stored"}),
            201 if found.status == "added" else 200,
        )

    @router.delete("/{name}")
    def revoke(
        request: Request, name: str, set: str = DEFAULT, author: Text = AUTHOR, reason: Text = ""
    ) -> dict[str, Any]:
        check_change(set, holder_of(request))
        stored = clerk.find(name, holder_of(request))
        note(request, edit=stored.id)
        who: dict[str, Any] = {"author": author, "reason": reason}
        made = clerk.change("revoked", lambda: clerk.store.revoke(stored.id, set=set, **who), **who)
        return {"object": "edit.revoked", "id": stored.id, "set": set, **made}

    @router.post("/{name}/restore")
    async def restore(request: Request, name: str) -> dict[str, Any]:
        body = await request.body()
        why: Why = parsed(Why, read_body(body) if body else {})
        check_change(why.set, holder_of(request))

        def work() -> dict[str, Any]:
            stored = clerk.find(name, holder_of(request))
            note(request, edit=stored.id)
            return {"object": "edit.restored", "id": stored.id, "set": why.set} | clerk.change(
                "restored",
                lambda: clerk.store.restore(stored.id, **why.model_dump()),
                author=why.author,
                reason=why.reason,
            )

        return await run_in_threadpool(work)


def set_routes(clerk: Clerk) -> APIRouter:
    """``/v1/sets`` and ``/v1/log``."""
    router = APIRouter(prefix="/v1")

    @router.get("/sets")
    def sets(request: Request) -> dict[str, Any]:
        names = clerk.desk.sets.names(holder_of(request))
        data = [{"object": "set", "name": name, "version": clerk.store.version(name)} for name in names]
        return {"object": "list", "data": data}

    @router.get("/sets/{name}")
    def one(request: Request, name: str, version: Annotated[int | None, Parameter(ge=0)] = None) -> dict[str, Any]:
        at = clerk.store.version(name) if version is None else version
        data = [clerk.shown(each) for each in clerk.members(name, at, holder_of(request))]
        return {"object": "set", "name": name, "version": at, "data": data}

    @router.post("/sets/{name}/roll-back")
    async def roll_back(request: Request, name: str) -> dict[str, Any]:
        wanted: RollBack = parsed(RollBack, read_body(await request.body()))
        note(request, set=name)
        check_change(name, holder_of(request))

        def work() -> dict[str, Any]:
            clerk.members(name, None, holder_of(request))
            more: dict[str, Any] = {"author": wanted.author, "reason": wanted.reason}
            made = clerk.change("rolled back", lambda: clerk.store.roll_back(name, wanted.version, **more), **more)
            return {"object": "set", "name": name, **made}

        return await run_in_threadpool(work)

    @router.get("/log")
    def log(request: Request, set: SetName = None, edit: str | None = None, limit: Limit = 100) -> dict[str, Any]:
        holder = holder_of(request)
        if edit is not None:
            edit = clerk.find(edit, holder).id
        if set is not None:
            clerk.desk.sets.version(set, holder)
        entries = clerk.store.log(set, edit, limit, holder.sets)
        return {"object": "list", "data": [entry.model_dump(mode="json") for entry in entries]}

    return router
