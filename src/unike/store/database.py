"""The database of a store: SQLite in a folder, or PostgreSQL; brought up to date, and written by one at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, NullPool, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from unike.core.errors import ReadOnly, Unavailable, UnikeError
from unike.core.folders import reason, try_place
from unike.store.sqlite import EMPTY, MARK, PATIENCE, connect_frozen, is_frozen, set_up, set_up_frozen, size_of

LOCK = 0x756E696B65
"""The advisory lock that writers to PostgreSQL hold."""

WRITES = "unike_writes"


class Database:
    """Tables, behind two kinds of transactions: of readers, who see one moment, and of writers, one at a time.

    One that is not there yet reads as an empty one, and is made by `ready` alone: nothing is left of what is refused.

    Args:
        url: As SQLAlchemy takes it.

    Raises:
        UnikeError: It cannot be opened, or was made by a newer version.
    """

    def __init__(self, url: str | URL) -> None:
        self.url = known(url)
        lite = self.url.get_backend_name() == "sqlite"
        self.file = Path(str(self.url.database)).absolute() if lite else None
        self._is_there = False
        with self.telling():
            self.is_frozen = self.file is not None and is_frozen(self.file)
            self.engine = create_engine(self.url, **self._ways())
            if lite:
                event.listen(self.engine, "connect", set_up_frozen if self.is_frozen else set_up)
            self._writing = self.engine.execution_options(**{WRITES: True})
            event.listen(self.engine, "begin", _begin_in_sqlite if lite else _begin)
        try:
            self.is_there()
        except UnikeError:
            self.close()
            raise

    def _ways(self) -> dict[str, Any]:
        """How connections are made."""
        if self.file is None:
            return {"pool_pre_ping": True, "isolation_level": "REPEATABLE READ"}
        if self.is_frozen:
            return {"creator": partial(connect_frozen, self.file), "poolclass": NullPool}
        return {"connect_args": {"timeout": PATIENCE, "check_same_thread": False}}

    @property
    def shown(self) -> str:
        """Its address, without a password."""
        return self.url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees the store as it is at one moment."""
        with self.telling(), (self.engine if self.is_there() else EMPTY).begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that no other writer is in; all of it takes place, or nothing.

        Where no store is there yet, there is nothing to be changed either: see `ready`.

        Raises:
            ReadOnly: It cannot be written.
        """
        self.check_writable()
        with self.telling(), (self._writing if self.is_there() else EMPTY).begin() as connection:
            yield connection

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Turn what the database says, and rows that no version of this wrote, into one line.

        Raises:
            UnikeError: It refuses, or holds what makes no sense.
        """
        try:
            yield
        except (OverflowError, UnicodeError) as error:
            raise UnikeError(f"no store keeps that: {error}") from error
        except (SQLAlchemyError, ArgumentError, ModuleNotFoundError, CommandError) as error:
            why = next(iter(str(getattr(error, "orig", None) or error).strip().splitlines()), type(error).__name__)
            raise Unavailable(f"the store {self.shown} refuses: {why}") from error
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            why = " ".join(str(error).split())[:200]
            raise Unavailable(f"the store {self.shown} is damaged: {why}; pull a whole one anew") from error

    def close(self) -> None:
        """Let go of its connections."""
        self.engine.dispose()

    # ------------------------------------------------------------------ whether it is there

    def is_there(self) -> bool:
        """Whether it was made, by whichever process; its tables are those of this version then.

        Raises:
            UnikeError: It is of a newer version, or of an older one and cannot be written.
        """
        if self._is_there:
            return True
        if self.file is not None and not size_of(self.file):
            return False
        with self.telling(), self.engine.begin() as connection:
            at = _step(connection)
        if at is not None:
            self._take_steps(at)
            self._is_there = True
        return self._is_there

    def check_writable(self) -> None:
        """Refuse to change what cannot be written.

        Raises:
            ReadOnly: As it says.
        """
        if self.is_frozen:
            raise ReadOnly(f"the store {self.shown} is read-only here: it can be read and asked, not changed")

    def check_place(self) -> None:
        """Refuse a place in which `ready` could make nothing, before long work; nothing is left of the trial.

        Raises:
            UnikeError: As it says.
        """
        if self.file is not None:
            try_place(self.file)

    def ready(self) -> None:
        """Make it, if it is not there, before anything is put into it.

        Raises:
            ReadOnly: It cannot be written.
            UnikeError: It cannot be made.
        """
        self.check_writable()
        if self.is_there():
            return
        try:
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnikeError(f"cannot make a store at {self.shown}: {reason(error)}") from None
        self._take_steps(None)
        self.engine.dispose()  # new connections see that it is a store: `set_up`
        self._is_there = True

    def _take_steps(self, at: str | None) -> None:
        """Take the steps that are missing, one process at a time.

        Raises:
            UnikeError: It has taken steps that are not known here, or may not take those that it lacks.
        """
        steps = Config()
        steps.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        script = ScriptDirectory.from_config(steps)
        newest, known_steps = script.get_current_head(), {each.revision for each in script.walk_revisions()}
        if at == newest:
            return
        if at is not None and at not in known_steps:
            raise UnikeError(f"the store {self.shown} is of a newer version of unike; update unike")
        if self.is_frozen:
            raise ReadOnly(f"the store {self.shown} is of an older version; open it once where it can be written")
        with self.telling(), self._writing.begin() as connection:
            if _step(connection) != newest:
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
    if kind == "sqlite" and (found.database or ":memory:").startswith((":", "file:")):
        raise UnikeError(f"a store in SQLite is a file of its own, not {url!r}; give a folder, or sqlite:///FILE")
    return found


def _step(connection: Connection) -> str | None:
    if not inspect(connection).has_table(MARK):
        return None
    step: str | None = MigrationContext.configure(connection, opts={"version_table": MARK}).get_current_revision()
    return step


def _begin_in_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin(connection: Connection) -> None:
    """Wait for other writers before anything is read: what is read then is what they left."""
    if connection.get_execution_options().get(WRITES):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
