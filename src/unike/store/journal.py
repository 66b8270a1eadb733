"""Versions of sets, and the log, within a transaction.

The log is a chain: the seal of each line is made of the line and of the seal before.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import Connection, func, insert, select

from unike.core.errors import UnikeError
from unike.store.tables import CHANGES, LOG
from unike.store.values import Entry


def version_of(connection: Connection, set: str) -> int:
    """The newest version of a set, 0 if there is none."""
    newest: int | None = connection.scalar(select(func.max(CHANGES.c.version)).where(CHANGES.c.set == set))
    return newest or 0


def checked_version(connection: Connection, set: str, version: int | None) -> int:
    """A version that there is; the newest for None.

    Raises:
        UnikeError: There is no such version.
    """
    newest = version_of(connection, set)
    if version is None:
        return newest
    if not 0 <= version <= newest:
        raise UnikeError(f"the set {set!r} has the versions 0 to {newest}, and no {version}")
    return version


def positions(connection: Connection, set: str, version: int) -> dict[str, int]:
    """Where each edit stands in the stack of a version of a set."""
    rows = select(CHANGES.c.edit, CHANGES.c.position).where(CHANGES.c.set == set, CHANGES.c.version.between(1, version))
    last = {edit: at for edit, at in connection.execute(rows.order_by(CHANGES.c.version))}
    return {edit: at for edit, at in last.items() if at is not None}


def in_order(standing: Mapping[str, int]) -> list[str]:
    """Edits, the bottom of the stack first."""
    return sorted(standing, key=lambda edit: standing[edit])


def change(connection: Connection, set: str, changed: Mapping[str, int | None], **entry: Any) -> int:
    """Make a new version of a set, and write down why.

    Args:
        connection: Of a writer.
        set: Its name.
        changed: Where edits stand from now on, None for nowhere.
        **entry: As `write_down`.

    Returns:
        The version.
    """
    version = version_of(connection, set) + 1
    rows = [{"set": set, "version": version, "edit": edit, "position": at} for edit, at in changed.items()]
    connection.execute(insert(CHANGES), rows)
    write_down(connection, set=set, version=version, **entry)
    return version


def write_down(
    connection: Connection,
    action: str,
    author: str,
    *,
    set: str = "",
    version: int = 0,
    edit: str | None = None,
    reason: str = "",
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add a line to the log; the arguments are its fields, see `Entry`."""
    last = connection.execute(select(LOG.c.number, LOG.c.seal).order_by(LOG.c.number.desc()).limit(1)).first()
    line: dict[str, Any] = {
        "number": 1 if last is None else last.number + 1,
        "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "author": author,
        "action": action,
        "set": set,
        "version": version,
        "edit": edit,
        "reason": reason,
        "detail": dict(detail or {}),
    }
    connection.execute(insert(LOG).values(**line, seal=seal_of(line, "" if last is None else last.seal)))


def seal_of(line: Mapping[str, Any], before: str) -> str:
    """SHA-256 of a line and the seal of the line before."""
    said = {name: value for name, value in line.items() if name != "seal"}
    return hashlib.sha256(f"{before}{json.dumps(said, sort_keys=True)}".encode()).hexdigest()


def broken(entries: list[Entry]) -> int | None:
    """The number of the first line of a whole log that was changed or is missing; None if all are as they were."""
    before = ""
    for number, entry in enumerate(entries, 1):
        if entry.number != number or entry.seal != seal_of(entry.model_dump(), before):
            return number
        before = entry.seal
    return None
