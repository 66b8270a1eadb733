"""What keeps a store sound: looking for damage, removing what nothing names, and copying sets to other stores."""

from sqlalchemy import Connection, select

from unike.core.errors import UnikeError
from unike.core.progress import Progress, silent
from unike.store import journal
from unike.store.names import DEFAULT
from unike.store.proof import Kept, check_row, unexplained
from unike.store.store import Store
from unike.store.tables import CANARIES, EDITS

GRACE = 3600
"""Seconds for which a blob that nothing names is left: its writer may be about to name it."""

AT_ONCE = 100
"""So many are removed while other writers wait."""


def damage(store: Store, progress: Progress = silent) -> list[str]:
    """What is wrong with a store, a line each: in blobs, edits and the log, or what does not follow from the log.

    Args:
        store: Is only read.
        progress: Told how many edits were looked at.
    """
    kept = Kept.of(store)
    first = journal.broken(kept.log)
    found = [] if first is None else [f"line {first} of the log is missing or was changed"]
    found += unexplained(kept)
    edits = store.all()
    for number, stored in enumerate(edits):
        progress("reading edits", number, len(edits))
        try:
            if stored.picture is not None:
                store.blobs.get(stored.picture)
            store.blobs.get(stored.tensors)
            check_row(store, stored, store.edit(stored))
        except UnikeError as error:
            found.append(str(error))
        except ValueError as error:
            found.append(f"the edit {stored.id} was changed: {error}; pull it anew")
    progress("reading edits", len(edits), len(edits))
    for canary in store.canaries():
        try:
            store.canary_query(canary)
        except UnikeError as error:
            found.append(str(error))
    return found


def collect(store: Store, grace: float = GRACE) -> tuple[int, int]:
    """Remove blobs that nothing names, which writers left that were killed. Edits that were revoked are kept.

    Args:
        store: Whose.
        grace: Younger ones are left, in seconds.

    Returns:
        How many, and how many bytes.

    Raises:
        ReadOnly: The store can only be read.
    """
    store.check_writable()
    named = _named(store)
    lying = [blob for blob in store.blobs.all() if blob.age >= grace and blob.name not in named]
    dropped = []
    for start in range(0, len(lying), AT_ONCE):
        with store.database.writing() as connection:  # nobody names one meanwhile
            named = _named_in(connection)
            for blob in lying[start : start + AT_ONCE]:
                if blob.name not in named and store.blobs.age(blob.name) >= grace:  # a writer may have put it again
                    store.blobs.drop(blob.name)
                    dropped.append(blob)
    return len(dropped), sum(blob.size for blob in dropped)


def _named(store: Store) -> set[str | None]:
    with store.database.reading() as connection:
        return _named_in(connection)


def _named_in(connection: Connection) -> set[str | None]:
    """The blobs that edits and canaries name."""
    columns = (EDITS.c.tensors, EDITS.c.picture, CANARIES.c.picture)
    return {name for column in columns for name in connection.scalars(select(column))}


def copy_set(
    source: Store,
    to: Store,
    *,
    set: str = DEFAULT,
    into: str | None = None,
    author: str | None = None,
    reason: str = "",
    progress: Progress = silent,
) -> int:
    """Put in force in one store what is in force in a set of another, in its order, in one step.

    Args:
        source: Where it comes from.
        to: Where it goes.
        set: Of the source.
        into: Set of the other store; None for one of the same name.
        author: Who does it.
        reason: Why.
        progress: Told how many edits were read.

    Returns:
        The version of the other set: a new one unless that was in force already.
    """
    has_set(source, set)
    found = []
    members = source.members(set)
    for number, stored in enumerate(members):
        progress("reading edits", number, len(members))
        found.append((source.edit(stored), stored))
    progress("reading edits", len(members), len(members))
    return to.put(found, set=into or set, author=author, reason=reason)


def has_set(store: Store, set: str) -> None:
    """Refuse to copy what is not there.

    Raises:
        UnikeError: With the sets that there are.
    """
    if set not in store.sets():
        raise UnikeError(f"there is no set {set!r} to copy (there {sets_of(store)})")


def sets_of(store: Store) -> str:
    """The sets that there are, in words."""
    sets = store.sets()
    return f"are: {', '.join(sets)}" if sets else "is none"
