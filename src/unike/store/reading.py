"""What a store has to tell: edits, sets and their versions, the log, canaries. Reading changes nothing."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from threading import Lock

from safetensors import SafetensorError
from sqlalchemy import ColumnElement, Connection, select, true

from unike.core.errors import Unavailable, UnikeError
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.edits.files import put_together
from unike.store import journal
from unike.store.blobs import Blobs
from unike.store.database import Database
from unike.store.names import DEFAULT, LONGEST_ID, checked_set, is_set, is_start
from unike.store.tables import CANARIES, CHANGES, EDITS, LOG
from unike.store.values import Canary, Entry, Stored

LOADED = 4096
"""So many edits are kept in memory."""

AT_ONCE = 500
"""So many rows are asked for by name in one query."""


class Reader:
    """What is read of a store, by any number of threads.

    Args:
        database: Facts, sets and the log.
        blobs: Tensors and pictures.
    """

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self.database, self.blobs = database, blobs
        self._edits: OrderedDict[str, Edit] = OrderedDict()
        self._lock = Lock()

    def sets(self) -> list[str]:
        """The names of all sets that ever had an edit."""
        with self.database.reading() as connection:
            return sorted(connection.scalars(select(CHANGES.c.set).distinct()))

    def version(self, set: str = DEFAULT) -> int:
        """The newest version of a set; 0 if it never had an edit. It changes whenever what is in force does."""
        if not is_set(set):
            return 0
        with self.database.reading() as connection:
            return journal.version_of(connection, set)

    def members(self, set: str = DEFAULT, version: int | None = None) -> list[Stored]:
        """What is in force in a set, the bottom of the stack first.

        Args:
            set: Its name.
            version: What was in force then; None for now.

        Raises:
            UnikeError: There is no such version.
        """
        checked_set(set)
        with self.database.reading() as connection:
            at = journal.checked_version(connection, set, version)
            return stored_of(connection, journal.in_order(journal.positions(connection, set, at)))

    def all(
        self, *, tag: str | None = None, text: str | None = None, within: Collection[str] | None = None
    ) -> list[Stored]:
        """Every edit that was ever added, the newest last.

        Args:
            tag: Only those with this one.
            text: Only those whose prompt, target, tags or reason hold it, whatever its case.
            within: Only those that were ever in force in one of these sets; None for all.
        """
        with self.database.reading() as connection:
            rows = select(*COLUMNS).where(_ever_in(within)).order_by(EDITS.c.added_at, EDITS.c.id)
            found = [Stored(**row) for row in connection.execute(rows).mappings()]
        wanted = "" if text is None else text.casefold()
        return [
            each
            for each in found
            if (tag is None or tag in each.tags)
            and wanted in "\n".join((each.prompt, each.target, each.reason, *each.tags)).casefold()
        ]

    def find(self, name: str, within: Collection[str] | None = None) -> Stored:
        """An edit by its id, or by as many digits of it as no other begins with.

        Args:
            name: The id, or the first digits of it.
            within: Look at those alone that were ever in force in one of these sets; None for all.

        Raises:
            UnikeError: There is none, or there are several.
        """
        starts = EDITS.c.id.startswith(name.casefold(), autoescape=True)
        with self.database.reading() as connection:
            rows = select(EDITS.c.id).where(starts, _ever_in(within)).limit(2)
            names = list(connection.scalars(rows)) if is_start(name) else []
            if len(names) != 1:
                how = "several edits begin" if names else "there is no edit that begins"
                raise UnikeError(f"{how} with {name[:LONGEST_ID]!r} in this store")
            return stored_of(connection, names)[0]

    def edit(self, stored: Stored) -> Edit:
        """An edit with its tensors.

        Raises:
            UnikeError: Its blobs are missing or were changed.
        """
        with self._lock:
            if stored.id in self._edits:
                self._edits.move_to_end(stored.id)
                return self._edits[stored.id]
        with self.database.reading() as connection:
            described = connection.scalars(select(EDITS.c.described).where(EDITS.c.id == stored.id)).one()
        picture = None if stored.picture is None else str(self.picture(stored.picture))
        try:
            facts = [fact | {"image": picture} for fact in described["facts"]]
            content = self.blobs.get(stored.tensors)
            edit = put_together(described | {"facts": facts}, content, self.blobs.source(stored.tensors, content))
        except (ValueError, TypeError, LookupError, SafetensorError) as error:
            raise Unavailable(f"the edit {stored.id} cannot be read: {error}; revoke it, or pull it anew") from None
        with self._lock:
            self._edits[stored.id] = edit
            while len(self._edits) > LOADED:
                self._edits.popitem(last=False)
        return edit

    def edits(self, set: str = DEFAULT, version: int | None = None) -> list[Edit]:
        """The edits that are in force in a set, as `members`."""
        return [self.edit(stored) for stored in self.members(set, version)]

    def picture(self, name: str) -> Path:
        """A picture's file, by its SHA-256."""
        return self.blobs.path(name)

    def log(
        self,
        set: str | None = None,
        edit: str | None = None,
        limit: int | None = None,
        within: Collection[str] | None = None,
    ) -> list[Entry]:
        """Who did what when, the oldest first.

        Args:
            set: Only in this one.
            edit: Only about the one with this id.
            limit: So many of the newest.
            within: Only in one of these sets, and nothing of the store as a whole; None for all.
        """
        rows = select(LOG).order_by(LOG.c.number.desc())
        rows = rows if set is None else rows.where(LOG.c.set == checked_set(set))
        rows = rows if edit is None else rows.where(LOG.c.edit == edit)
        rows = rows if within is None else rows.where(LOG.c.set.in_(within))
        with self.database.reading() as connection:
            found = connection.execute(rows if limit is None else rows.limit(limit)).mappings()
            return [Entry(**row) for row in found][::-1]

    def canaries(self) -> list[Canary]:
        """Questions whose answers no edit is to change."""
        with self.database.reading() as connection:
            rows = connection.execute(select(CANARIES).order_by(CANARIES.c.id)).mappings()
            return [Canary(**row) for row in rows]

    def canary_queries(self, check: Callable[[Query], None] = lambda query: None) -> list[Query]:
        """The same, to be asked.

        Args:
            check: Raises a `UnikeError` for what a model cannot be asked.

        Raises:
            UnikeError: One cannot be asked; says how it is dropped, because no edit comes into force until then.
        """
        return [self.canary_query(each, check) for each in self.canaries()]

    def canary_query(self, canary: Canary, check: Callable[[Query], None] = lambda query: None) -> Query:
        """The same of one.

        Raises:
            UnikeError: As `canary_queries`.
        """
        try:
            if canary.picture is not None:
                self.blobs.get(canary.picture)  # of a picture that was changed, its path tells nothing
            query = Query(canary.prompt, None if canary.picture is None else self.picture(canary.picture))
            check(query)
            return query
        except UnikeError as error:
            raise UnikeError(
                f"the canary {canary.id} ({canary.prompt[:80]!r}) cannot be asked: {error}; or have it asked no more: "
                f"unike store canary drop {canary.id}"
            ) from None


COLUMNS = [column for column in EDITS.c if column.name != "described"]


def _ever_in(sets: Collection[str] | None) -> ColumnElement[bool]:
    """Which edits were ever in force in one of some sets; all for None."""
    if sets is None:
        return true()
    return EDITS.c.id.in_(select(CHANGES.c.edit).where(CHANGES.c.set.in_(sets)))


def stored_of(connection: Connection, names: Sequence[str]) -> list[Stored]:
    """Edits by their ids, in that order."""
    found: dict[str, Stored] = {}
    for start in range(0, len(names), AT_ONCE):
        rows = select(*COLUMNS).where(EDITS.c.id.in_(names[start : start + AT_ONCE]))
        found |= {row["id"]: Stored(**row) for row in connection.execute(rows).mappings()}
    if missing := [name for name in names if name not in found]:
        raise LookupError(f"the edit {missing[0]!r} is missing")
    return [found[name] for name in names]
