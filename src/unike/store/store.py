"""A store: edits, the sets that they are in force in, every version of these, and the log of who did what.

What is in force in a set is its newest version. A version is what its changes left: each says at which position of the
stack an edit stands from then on, or that it stands nowhere. Nothing is ever overwritten, so any version comes back as
it was, tensors, order and all. Every change and its line of the log are written in one transaction.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, insert, select, update
from typing_extensions import Self

from unike.core.errors import UnikeError
from unike.core.files import read_file
from unike.core.folders import reason as failure
from unike.core.images import load_image
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.edits.files import is_hash, taken_apart
from unike.store import journal
from unike.store.blobs import Blobs, name_of
from unike.store.database import Database
from unike.store.names import (
    DEFAULT,
    LONGEST_ID,
    asks,
    author_or_user,
    check_fact,
    checked_set,
    checked_tags,
    checked_text,
    identity,
    is_start,
)
from unike.store.places import FILE, FOLDER, check_new, kept_at, not_there
from unike.store.reading import Reader, stored_of
from unike.store.tables import ABOUT, CANARIES, EDITS
from unike.store.values import Canary, Stored


class Moved(UnikeError):
    """A set has changed since it was looked at: look again, and decide anew."""


class Store(Reader):
    """Open one with `Store.open`. Its methods may be called from several threads.

    Attributes:
        told: Where the blobs of a new store in a database are, until the database is told.
    """

    told: str | None = None

    @classmethod
    def open(cls, where: str | Path, blobs: str | None = None, *, make: bool = True) -> Self:
        """Open a store; one that is not there is empty, and is made by the first edit or canary.

        Args:
            where: A folder, or an address of a database: ``postgresql://user@host/name``.
            blobs: Where tensors and pictures are kept, as `Blobs` takes it. A folder has them within; a database is
                told when the store is made, and knows it from then on.
            make: Whether one may be made.

        Raises:
            UnikeError: It cannot be opened, is not there and may not be made, or could not be.
        """
        is_folder = "://" not in str(where)
        folder = Path(where).absolute()
        # As text, a '?' or '%' in a name would mean something.
        database = Database(URL.create("sqlite", database=str(folder / FILE)) if is_folder else str(where))
        try:
            if not database.is_there():
                check_new(database, folder if is_folder else None, make)
            if is_folder:
                return cls(database, Blobs(blobs or str(folder / FOLDER)))
            place, is_told = kept_at(database, blobs)
            if not (is_told or make):
                raise not_there(database.shown)
            found = cls(database, Blobs(place))
            found.told = None if is_told else place
            return found
        except UnikeError:
            database.close()
            raise

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    def check_writable(self) -> None:
        """Refuse a store that can only be read, before long work whose result is to be kept in it.

        Raises:
            ReadOnly: As it says.
        """
        self.database.check_writable()

    # ------------------------------------------------------------------ changing what is in force

    def add(
        self,
        edit: Edit,
        *,
        set: str = DEFAULT,
        author: str | None = None,
        reason: str = "",
        tags: Sequence[str] = (),
        replaces: Sequence[str] = (),
        detail: Mapping[str, Any] | None = None,
        seen: int | None = None,
    ) -> Stored:
        """Put an edit in force, on top of those that are; one of the same fact stays as it is.

        Args:
            edit: Of one fact.
            set: Where; it is made if it is not there.
            author: Who does it; None for the user of this process.
            reason: Why.
            tags: To find it by.
            replaces: Ids of edits that are revoked in the same step.
            detail: What else the log is to keep.
            seen: The version that was looked at; None if it does not matter.

        Raises:
            UnikeError: It is of several facts, its picture is gone, it would load what does not ship, or the set has
                changed since it was looked at.
        """
        line = _line(author, reason)
        checked_set(set)
        stored, described = self._keep(edit, line["author"], line["reason"], checked_tags(tags))
        with self.database.writing() as connection:
            version = journal.version_of(connection, set)
            _check_seen(set, seen, version)
            standing = journal.positions(connection, set, version)
            for each in stored_of(connection, journal.in_order(standing)):
                if each.id not in replaces and asks(each) == asks(stored):
                    if each.target == stored.target:
                        return each
                    raise UnikeError(
                        f"{each.id} answers {each.prompt!r} with {each.target!r} in {set!r}; revoke it first"
                    )
            self._insert(connection, stored, described)
            changed: dict[str, int | None] = {each: None for each in replaces if each in standing}
            about = {**(detail or {}), **({"replaced": list(changed)} if changed else {})}
            changed[stored.id] = max(standing.values(), default=0) + 1
            journal.change(connection, set, changed, action="add", edit=stored.id, detail=about, **line)
            return stored_of(connection, [stored.id])[0]

    def revoke(self, name: str, *, set: str = DEFAULT, author: str | None = None, reason: str = "") -> int:
        """Take an edit off; it is kept, and can be restored.

        Returns:
            The set's new version.

        Raises:
            UnikeError: It is not in force there.
        """
        stored, line = self.find(name), _line(author, reason)
        with self.database.writing() as connection:
            if stored.id not in journal.positions(connection, checked_set(set), journal.version_of(connection, set)):
                raise UnikeError(f"the edit {stored.id} is not in force in the set {set!r}")
            return journal.change(connection, set, {stored.id: None}, action="revoke", edit=stored.id, **line)

    def restore(self, name: str, *, set: str = DEFAULT, author: str | None = None, reason: str = "") -> int:
        """Put an edit that was revoked, or that is in force in another set, in force on top of what is.

        Returns:
            The set's new version.

        Raises:
            UnikeError: It is in force there, or another one of the same question is.
        """
        stored, line = self.find(name), _line(author, reason)
        with self.database.writing() as connection:
            standing = journal.positions(connection, checked_set(set), journal.version_of(connection, set))
            if stored.id in standing:
                raise UnikeError(f"the edit {stored.id} is in force in the set {set!r}")
            for each in stored_of(connection, journal.in_order(standing)):
                if asks(each) == asks(stored):
                    raise UnikeError(f"the edit {each.id} answers the same question in {set!r}; revoke it first")
            top = {stored.id: max(standing.values(), default=0) + 1}
            return journal.change(connection, set, top, action="restore", edit=stored.id, **line)

    def roll_back(
        self, set: str, version: int, *, author: str | None = None, reason: str = "", seen: int | None = None
    ) -> int:
        """Put in force what was in a version of a set, in its order; what came after is kept, as everything is.

        Args:
            set: Its name.
            version: That is to be in force again.
            author: Who does it.
            reason: Why.
            seen: The version that was looked at; None if it does not matter.

        Returns:
            The set's new version.

        Raises:
            UnikeError: There is no such version, it is what is in force, or the set has changed since it was looked at.
        """
        line = _line(author, reason)
        with self.database.writing() as connection:
            newest = journal.version_of(connection, checked_set(set))
            if not newest:
                raise UnikeError(f"there is no set {set!r}")
            _check_seen(set, seen, newest)
            now = journal.positions(connection, set, newest)
            then = journal.positions(connection, set, journal.checked_version(connection, set, version))
            changed = {each: then.get(each) for each in now.keys() | then.keys() if now.get(each) != then.get(each)}
            if not changed:
                raise UnikeError(f"version {version} of the set {set!r} is what is in force")
            return journal.change(connection, set, changed, action="roll back", detail={"to": version}, **line)

    def put(
        self, found: Sequence[tuple[Edit, Stored]], *, set: str = DEFAULT, author: str | None = None, reason: str = ""
    ) -> int:
        """Put edits of another store in force, exactly these and in this order, with who made them and why.

        Args:
            found: Of the other store.
            set: Of this one.
            author: Who does it.
            reason: Why.

        Returns:
            The set's version: a new one unless that is what is in force.
        """
        line = _line(author, reason)
        checked_set(set)
        kept = [self._keep(edit, each.author, each.reason, each.tags, each.picture_name) for edit, each in found]
        with self.database.writing() as connection:
            version = journal.version_of(connection, set)
            now = journal.positions(connection, set, version)
            names = [each.id for each, _ in kept]
            if journal.in_order(now) == names:
                return version
            for (stored, described), (_, other) in zip(kept, found, strict=True):
                self._insert(connection, stored.model_copy(update={"added_at": other.added_at}), described)
            first = max(now.values(), default=0) + 1
            changed: dict[str, int | None] = {each: None for each in now}
            changed |= {name: at for at, name in enumerate(names, first)}
            return journal.change(connection, set, changed, action="pull", detail={"edits": names}, **line)

    # ------------------------------------------------------------------ canaries

    def add_canary(self, query: Query, *, author: str | None = None) -> Canary:
        """Ask a question before and after each edit from now on; one that is there stays as it is.

        Raises:
            UnikeError: Its picture cannot be read.
        """
        prompt = checked_text("prompt", query.prompt.strip(), empty=False)
        author = author_or_user(author)
        content = None if query.image is None else read_picture(query.image)
        self._make()
        picture = None if content is None else self.blobs.put(content)
        canary = Canary(id=identity(prompt.casefold(), picture), prompt=prompt, picture=picture)
        with self.database.writing() as connection:
            if not connection.scalar(select(CANARIES.c.id).where(CANARIES.c.id == canary.id)):
                connection.execute(insert(CANARIES).values(**canary.model_dump()))
                journal.write_down(connection, "add canary", author, detail=canary.model_dump())
        return canary

    def drop_canary(self, name: str, *, author: str | None = None) -> Canary:
        """Ask a question no more.

        Raises:
            UnikeError: There is none with an id that begins so, or there are several.
        """
        author = author_or_user(author)
        with self.database.writing() as connection:
            starts = CANARIES.c.id.startswith(name, autoescape=True)
            found = select(CANARIES).where(starts).limit(2)
            rows = connection.execute(found).mappings().all() if is_start(name) else []
            if len(rows) != 1:
                raise UnikeError(
                    f"{'several canaries begin' if rows else 'no canary begins'} with {name[:LONGEST_ID]!r}"
                )
            canary = Canary(**rows[0])
            connection.execute(CANARIES.delete().where(CANARIES.c.id == canary.id))
            journal.write_down(connection, "drop canary", author, detail=canary.model_dump())
            return canary

    # ------------------------------------------------------------------ within

    def _keep(
        self, edit: Edit, author: str, reason: str, tags: tuple[str, ...], picture_name: str | None = None
    ) -> tuple[Stored, dict[str, Any]]:
        """Put an edit's tensors and picture where they stay, before anything names them.

        Raises:
            UnikeError: As `add`.
        """
        if len(edit) != 1:
            raise UnikeError(f"{edit!r} is of {len(edit)} facts; add each alone: edit[i]")
        if named := edit.config.encoders():
            raise UnikeError(f"the edit would load {named[0]!r}, which does not ship; a store keeps no such edits")
        (fact,), ((_, seen),) = edit.facts, edit.questions
        shown = None
        if fact.image is not None:
            shown = read_picture(fact.image) if is_hash(seen) else None
            picture_name = picture_name or (None if is_hash(fact.image.name) else shown_name(fact.image))
        if (None if shown is None else name_of(shown)) != (seen or None):
            raise UnikeError(f"the picture {fact.image} is not the one that the edit was made with; make the edit anew")
        check_fact(fact.prompt, fact.target or "")
        described, content = taken_apart(edit)
        described["facts"][0]["image"] = None
        self._make()
        picture = None if shown is None else self.blobs.put(shown)
        tensors = self.blobs.put(content)
        stored = Stored(
            id=identity(fact.prompt, fact.target, picture, edit.fingerprint, edit.editor, described["config"], tensors),
            prompt=fact.prompt,
            target=fact.target or "",
            picture=picture,
            picture_name=picture_name,
            editor=edit.editor,
            source=edit.source,
            fingerprint=edit.fingerprint,
            tensors=tensors,
            tags=tags,
            author=author,
            reason=reason,
            added_at=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        )
        return stored, described

    def _make(self) -> None:
        """Make the store if it is not there, before anything is put into it.

        Raises:
            UnikeError: It cannot be made or written, or another process has made it with its blobs elsewhere.
        """
        self.database.ready()
        if self.told is not None:
            with self.database.writing() as connection:
                if connection.scalar(select(ABOUT.c.value).where(ABOUT.c.key == "blobs")) is None:
                    connection.execute(insert(ABOUT).values(key="blobs", value=self.told))
            kept_at(self.database, self.told)
            self.told = None

    def _insert(self, connection: Connection, stored: Stored, described: Mapping[str, Any]) -> None:
        """An edit's row; one that was added before is told why, by whom and under which tags it is added again."""
        if not connection.scalar(select(EDITS.c.id).where(EDITS.c.id == stored.id)):
            connection.execute(insert(EDITS).values(**stored.model_dump(), described=described))
            return
        said = stored.model_dump(include={"tags", "author", "reason", "added_at"})
        connection.execute(update(EDITS).where(EDITS.c.id == stored.id).values(**said))


def _check_seen(set: str, seen: int | None, newest: int) -> None:
    """Refuse to go by what was looked at before a set changed.

    Raises:
        Moved: As it says.
    """
    if seen is not None and seen != newest:
        raise Moved(f"the set {set!r} has changed since it was looked at; try again")


def _line(author: str | None, reason: str) -> dict[str, str]:
    """Who and why, for the log."""
    return {"author": author_or_user(author), "reason": checked_text("reason", reason)}


def shown_name(path: Path) -> str:
    """What a file is called, as a database keeps it: names of files need not be UTF-8."""
    return path.name.encode(errors="replace").decode().replace("\0", "")


def read_picture(path: Path) -> bytes:
    """A picture's file.

    Raises:
        UnikeError: It cannot be read, or is no picture.
    """
    load_image(path)
    try:
        return read_file(path)
    except OSError as error:
        raise UnikeError(f"cannot read the image {path}: {failure(error)}") from None
