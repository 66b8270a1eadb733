"""What the page's tabs ask for: the same requests that programs send, answered by the same engine and admission."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio

from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.serve.asked import Asked
from unike.serve.editing import Clerk, check_change
from unike.serve.engine import Full
from unike.serve.errors import LOG, ApiError, invalid, told, too_many
from unike.serve.keys import ANYONE, Holder
from unike.serve.sessions import LOGIN
from unike.serve.sets import DEFAULT
from unike.serve.studio.values import Change, Listed, Made
from unike.store import Canary, Entry, Stored
from unike.store.admission import Admission
from unike.store.names import set_and_version

AUTHOR = "studio"
"""Who is written down where a visitor does not say."""

PAGE = 20
"""Edits that are listed at once."""

VERSIONS = 200
"""So many versions of a set are offered; of others, the number can be written."""

T = TypeVar("T")


class Counter:
    """Where visitors of the studio are served.

    Args:
        clerk: Who changes the store.
        uploads: The folder below which pictures of visitors lie.
    """

    def __init__(self, clerk: Clerk, uploads: Path) -> None:
        self.clerk, self.uploads = clerk, uploads.resolve()
        self.desk, self.store, self.engine = clerk.desk, clerk.store, clerk.engine
        self.name = clerk.desk.settings.name
        self.holder = ANYONE

    def of(self, holder: Holder | None) -> Counter:
        """The same, for whoever holds a key: what that is not good for is not there.

        Raises:
            ApiError: Nobody has signed in.
        """
        if holder is None:
            raise ApiError(401, f"sign in at {LOGIN}", code="invalid_api_key")
        found = copy(self)
        found.holder = holder
        return found

    # ------------------------------------------------------------------ asking

    async def say(self, question: str, picture: str | None, edits: str = "") -> str:
        """The answer to a question.

        Args:
            question: What is asked.
            picture: The file that a visitor sent, or None.
            edits: Under which: a set, or ``"set:version"``; nothing for the unedited model.

        Raises:
            ApiError: It cannot be answered.
        """
        if not question.strip():
            raise invalid("the question is empty; write what is to be asked")
        parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if picture is not None:
            parts.append({"type": "image_url", "image_url": {"url": await in_thread(self.url, picture)}})
        model = f"{self.name}@{edits}" if edits else self.name
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": parts}]}).encode()
        sent, jobs, chosen = await in_thread(self.desk.read, body, self.holder)
        asked = Asked(sent, jobs, chosen, "")
        asked.on_end = lambda: self.desk.drop(jobs[0].query.image)
        try:
            self.engine.submit(jobs)
        except Full as error:
            asked.on_end()
            raise too_many(str(error)) from None
        try:
            await asyncio.wait_for(asked.all_over(), self.desk.settings.timeout + 1)
        except asyncio.TimeoutError:
            raise ApiError(504, "the answer was not there in time; try again", code="timeout") from None
        finally:
            asked.give_up()
        for kind, count in zip(("read", "written"), list(asked.usage.values())[:2], strict=True):
            self.clerk.meter.tokens.labels(kind).inc(count)
        return jobs[0].decoding.text

    async def both(self, question: str, picture: str | None, first: str, second: str) -> tuple[str, str]:
        """The answers under two choices of edits; they are written together.

        Raises:
            ApiError: One of them cannot be given.
        """
        answers = await asyncio.gather(
            *(self.say(question, picture, edits) for edits in (first, second)), return_exceptions=True
        )
        for each in answers:
            if isinstance(each, BaseException):
                raise each
        before, after = answers
        return str(before), str(after)

    def url(self, picture: str) -> str:
        """A visitor's picture as a data URL.

        Raises:
            ApiError: It is no file that was sent here, or too large.
        """
        path = Path(picture).resolve()
        if not path.is_relative_to(self.uploads) or not path.is_file():
            raise invalid("the picture is no longer there; choose it again")
        most = self.desk.settings.max_picture
        if path.stat().st_size > most:
            raise ApiError(413, f"a picture has at most {most:,} bytes here; scale it down")
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

    # ------------------------------------------------------------------ changing

    async def correct(self, question: str, picture: str | None, target: str, **terms: Any) -> Admission:
        """Make an edit between two batches, and put it in force.

        Args:
            question: That is answered wrongly.
            picture: As in `say`.
            target: The right answer.
            **terms: As in `unike.serve.editing.EditRequest`.

        Raises:
            ApiError: It cannot be made, or not by whoever asks for it.
        """
        self.check_admin()
        for value, says in ((question, "the question is empty"), (target, "the right answer is empty")):
            if not value.strip():
                raise invalid(f"{says}; write it first")
        fact = {"prompt": question, "target": target.strip(), **terms}
        if picture is not None:
            fact["image"] = await in_thread(self.url, picture)
        found = await self.clerk.add(json.dumps(fact).encode(), self.holder)
        self.clerk.meter.changes.labels(found.status).inc()
        return found

    def made(self, stored: Stored, set: str) -> Made:
        """Since which version of a set an edit is in force there."""
        lines = self.store.log(set, stored.id, 1)
        return Made(stored.id, set, lines[0].version if lines else self.store.version(set))

    def revoke(self, edit: str, set: str, author: str, reason: str) -> int:
        """Take an edit off.

        Raises:
            ApiError: It is not in force there.
        """
        self._check_change(set)
        work = partial(self.store.revoke, self.find(edit).id, set=set, author=author or AUTHOR, reason=reason)
        return self.clerk.change("revoked", work)["version"]

    def restore(self, edit: str, set: str, author: str, reason: str) -> int:
        """Put an edit in force again.

        Raises:
            ApiError: It is in force there, or another one of the same question is.
        """
        self._check_change(set)
        work = partial(self.store.restore, self.find(edit).id, set=set, author=author or AUTHOR, reason=reason)
        return self.clerk.change("restored", work)["version"]

    def roll_back(self, seen: Change, author: str, reason: str) -> int:
        """Put in force what was in an earlier version of a set, as it was shown.

        Raises:
            ApiError: The set has changed since.
        """
        self._check_change(seen.set)
        more: dict[str, Any] = {"author": author or AUTHOR, "reason": reason, "seen": seen.newest}
        return self.clerk.change("rolled back", partial(self.store.roll_back, seen.set, seen.version, **more))[
            "version"
        ]

    def add_canary(self, question: str, picture: str | None, author: str) -> Canary:
        """Ask a question before and after each edit from now on.

        Raises:
            ApiError: The model cannot be asked so, or the key is not good for the whole store.
        """
        self._check_whole()
        if not question.strip():
            raise invalid("the question is empty; write what is to be asked")
        kept = None if picture is None else self.desk.pictures.keep(self.url(picture))
        try:
            query = Query(question, kept)
            self.desk.check(query, self.desk.settings.max_new_tokens)
            return self.store.add_canary(query, author=author or AUTHOR)
        finally:
            self.desk.drop(kept)

    def drop_canary(self, name: str, author: str) -> Canary:
        """Ask a question no more.

        Raises:
            ApiError: The key is not good for the whole store.
            UnikeError: There is none with that id.
        """
        self._check_whole()
        return self.store.drop_canary(name, author=author or AUTHOR)

    # ------------------------------------------------------------------ who may

    def check_admin(self) -> None:
        """Refuse changes by those who may only look.

        Raises:
            ApiError: A user's key was shown.
        """
        if self.holder.role != "admin":
            raise ApiError(403, "edits are changed with an admin's key, and this is a user's")

    def _check_change(self, set: str) -> None:
        self.check_admin()
        check_change(set, self.holder)

    def _check_whole(self) -> None:
        self.check_admin()
        if self.holder.sets is not None:
            raise ApiError(403, "canaries are asked about every set, and this key is for some sets alone")

    # ------------------------------------------------------------------ looking

    def sets(self) -> list[str]:
        """The names of all sets that the visitor may ask under, the default one first; one may have no edit yet."""
        names = {DEFAULT, *self.store.sets()} if self.holder.sets is None else self.holder.sets
        return sorted(names, key=lambda name: (name != DEFAULT, name))

    def _names(self) -> list[str]:
        return self.desk.sets.names(self.holder)

    def find(self, edit: str) -> Stored:
        """An edit by its id.

        Raises:
            ApiError: There is none.
        """
        return self.clerk.find(edit, self.holder)

    def canaries(self) -> list[Canary]:
        """Questions whose answers no correction is to change; none where a key is for some sets alone."""
        return self.store.canaries() if self.holder.sets is None else []

    def alive(self) -> dict[str, list[str]]:
        """The sets in which each edit is in force, by its id."""
        found: dict[str, list[str]] = {}
        for name in self._names():
            for each in self.store.members(name):
                found.setdefault(each.id, []).append(name)
        return found

    def edits(self, text: str = "", set: str = "", tag: str = "", start: int = 0) -> Listed:
        """Edits, the newest first.

        Args:
            text: Only those that hold it.
            set: Only those in force there; nothing for all, whether they are in force or not.
            tag: Only those with it.
            start: Without so many of the newest.
        """
        alive = self.alive()
        found = self.store.all(tag=tag.strip() or None, text=text.strip() or None, within=self.holder.sets)[::-1]
        if set:
            found = [each for each in found if set in alive.get(each.id, ())]
        start = max(0, min(start, (len(found) - 1) // PAGE * PAGE))
        return Listed(found[start : start + PAGE], alive, len(found), start)

    def versions(self, set: str) -> list[tuple[str, str]]:
        """The versions of a set but the newest, the latest first, with what made each.

        Raises:
            ApiError: There is no such set.
        """
        self.desk.sets.version(set, self.holder)
        lines = [each for each in self.store.log(set, limit=VERSIONS + 1)[::-1] if each.version][1:]
        made = [(f"{e.version}: {e.action} {e.edit or ''} by {e.author}, {e.at[:16]}", str(e.version)) for e in lines]
        return [*made, ("0: no edit", "0")]

    def change_to(self, set: str, version: str) -> Change:
        """What rolling a set back would change.

        Args:
            set: Its name.
            version: A number, as it was written.

        Raises:
            ApiError: There is no such set or version.
            UnikeError: It is no number.
        """
        if not version.strip():
            raise invalid("no version is chosen; choose the one that is to be in force again")
        newest = self.desk.sets.version(set, self.holder)
        at = self.desk.sets.at(*set_and_version(f"{set}:{version.strip()}"), self.holder)
        return Change(set, at, newest, *(self.store.members(set, each) for each in (at, newest)))

    def tags(self) -> list[str]:
        """All tags."""
        return sorted({tag for each in self.store.all(within=self.holder.sets) for tag in each.tags})

    def log(self, set: str = "", edit: str | None = None, limit: int = 100) -> list[Entry]:
        """Lines of the log, the newest first."""
        return self.store.log(set or None, edit, limit, self.holder.sets)[::-1]


async def in_thread(work: Callable[..., T], *given: Any) -> T:
    """Do something that waits for disks or databases, while others are served."""
    return await anyio.to_thread.run_sync(partial(work, *given))


def line(error: Exception) -> str:
    """What a visitor is told of an error, in one line; what nobody foresaw is in the log."""
    if not isinstance(error, ApiError | UnikeError):
        LOG.error("the studio failed", exc_info=error)
    return told(error).message
