"""The database of a store: SQLite in a folder, or PostgreSQL; brought up to date, and written by one at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from unike.core.errors import UnikeError

PATIENCE = 60
"""Seconds that a writer waits for another."""

LOCK = 0x756E696B65
"""The advisory lock that writers to PostgreSQL hold."""

WRITES = "unike_writes"


class Database:
    """Tables, behind two kinds of transactions: of readers, who see one moment, and of writers, one at a time.

    Args:
        url: As SQLAlchemy takes it.

    Raises:
        UnikeError: It cannot be opened, or was made by a newer version.
    """

    def __init__(self, url: str | URL) -> None:
        self.url = known(url)
        lite = self.url.get_backend_name() == "sqlite"
        more: dict[str, Any] = {} if lite else {"pool_pre_ping": True, "isolation_level": "REPEATABLE READ"}
        arguments = {"timeout": PATIENCE, "check_same_thread": False} if lite else {}
        with self.telling():
            self.engine = create_engine(self.url, connect_args=arguments, **more)
            if lite:
                event.listen(self.engine, "connect", _set_up)
            self._writing = self.engine.execution_options(**{WRITES: True})
            event.listen(self.engine, "begin", _begin_in_sqlite if lite else _begin)
        try:
            with self.telling():
                self._bring_up_to_date()
        except UnikeError:
            self.close()
            raise

    @property
    def shown(self) -> str:
        """Its address, without a password."""
        return self.url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees the store as it is at one moment."""
        with self.telling(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that no other writer is in; all of it takes place, or nothing."""
        with self.telling(), self._writing.begin() as connection:
            yield connection

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Turn what the database says, and rows that no version of this wrote, into one line.

        Raises:
            UnikeError: It refuses, or holds what makes no sense.
        """
        try:
            yield
        except (SQLAlchemyError, ArgumentError, ModuleNotFoundError, OverflowError, UnicodeError) as error:
            why = next(iter(str(getattr(error, "orig", None) or error).strip().splitlines()), type(error).__name__)
            raise UnikeError(f"the store {self.shown} refuses: {why}") from error
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            why = " ".join(str(error).split())[:200]
            raise UnikeError(f"the store {self.shown} is damaged: {why}; pull a whole one anew") from error

    def close(self) -> None:
        """Let go of its connections."""
        self.engine.dispose()

    def _bring_up_to_date(self) -> None:
        """Take the steps that are missing, one process at a time.

        Raises:
            UnikeError: It has taken steps that are not known here.
        """
        steps = Config()
        steps.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        newest = ScriptDirectory.from_config(steps)
        known_steps = {script.revision for script in newest.walk_revisions()}
        with self.reading() as connection:
            at = _step(connection)
        if at == newest.get_current_head():
            return
        with self.writing() as connection:
            at = _step(connection)
            if at is not None and at not in known_steps:
                raise UnikeError(f"the store {self.shown} is of a newer version of unike; update unike")
            if at != newest.get_current_head():
                steps.attributes["connection"] = connection
                command.upgrade(steps, "head")


def known(url: str | URL) -> URL:
    """An address of a database that stores are kept in.

    Raises:
        UnikeError: It is something else.
    """
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        raise UnikeError(
            f"{url!r} is no address of a database; give a folder, or postgresql://user@host/name"
        ) from None
    kind = found.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise UnikeError(f"a store is kept in SQLite or PostgreSQL, not in {kind}; give a folder, or postgresql://...")
    if kind == "postgresql" and found.drivername == "postgresql":
        found = found.set(drivername="postgresql+psycopg")
    return found


def _step(connection: Connection) -> str | None:
    if not inspect(connection).has_table("unike_alembic"):
        return None
    step: str | None = MigrationContext.configure(
        connection, opts={"version_table": "unike_alembic"}
    ).get_current_revision()
    return step


def _set_up(connection: Any, record: Any) -> None:
    """Readers see the last whole state while one writes; what is committed is on the disk."""
    connection.isolation_level = None  # transactions are begun below, not by the driver
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")


def _begin_in_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin(connection: Connection) -> None:
    """Wait for other writers before anything is read: what is read then is what they left."""
    if connection.get_execution_options().get(WRITES):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
