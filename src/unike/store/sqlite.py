"""SQLite as stores use it: how a connection is set up, files that cannot be written, and stores that are not there."""

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import NullPool, create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateTable

from unike.core.errors import Unavailable, UnikeError
from unike.core.folders import reason
from unike.store.tables import METADATA

PATIENCE = 60
"""Seconds that a writer waits for another."""

PAUSE = 0.02
"""Seconds between two tries."""

MARK = "unike_alembic"
"""The table that tells a store from other databases: which steps were taken."""


def size_of(file: Path) -> int:
    """Bytes of a database; 0 where there is none.

    Raises:
        UnikeError: It may not be looked at.
    """
    try:
        return file.stat().st_size if file.is_file() else 0
    except (OSError, ValueError) as error:
        raise Unavailable(f"cannot read the store {file}: {reason(error)}") from None


def is_frozen(file: Path) -> bool:
    """Whether a database is there and cannot be written: to change it, SQLite makes files beside it."""
    return size_of(file) > 0 and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))


def set_up(connection: Any, record: Any) -> None:
    """Readers see the last whole state while one writes; what is committed is on the disk."""
    connection.isolation_level = None  # transactions are begun by `Database`, not by the driver
    for setting in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")
    if connection.execute(f"SELECT 1 FROM sqlite_master WHERE name = '{MARK}'").fetchone():  # else it is not ours
        write_ahead(connection)


def write_ahead(connection: Any) -> None:
    """Let a database keep a log that is written ahead of it, once nobody is at work in it.

    For that alone SQLite does not wait as it does for other locks: it refuses at once.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(PAUSE)


def set_up_frozen(connection: Any, record: Any) -> None:
    """Nothing is to be set."""
    connection.isolation_level = None


def connect_frozen(file: Path) -> sqlite3.Connection:
    """A connection that reads a database that cannot be written, and leaves no file beside it.

    A log beside it has changes that the file has not, so a file is read alone only where there is no log, or an empty
    one. SQLite reads the log if what a writer has beside it is there, too.

    Raises:
        UnikeError: There is a log, and it cannot be read.
    """
    log = file.with_name(f"{file.name}-wal")
    for mode in ["mode=ro"] * log.exists() + ["immutable=1"] * (size_of(log) == 0):
        connection = sqlite3.connect(f"{file.as_uri()}?{mode}", PATIENCE, uri=True, check_same_thread=False)
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            return connection
        except sqlite3.OperationalError:
            connection.close()
            if mode != "mode=ro":
                raise
        except BaseException:
            connection.close()
            raise
    raise UnikeError(
        f"the store {file} has changes in {log.name} that cannot be read where nothing can be written; copy its folder "
        "to where it can, and read it there"
    )


def _lay_out(connection: Any, record: Any) -> None:
    """Tables in memory, in which nothing can be kept: it would be lost."""
    for table in METADATA.sorted_tables:
        connection.execute(str(CreateTable(table).compile(dialect=sqlite.dialect())))
    connection.execute("PRAGMA query_only=ON")


EMPTY = create_engine("sqlite://", poolclass=NullPool)
"""What a store is read from before it is made."""

event.listen(EMPTY, "connect", _lay_out)
