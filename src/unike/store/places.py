"""Where a store is: in a folder, or in a database that is told where its blobs are."""

from pathlib import Path

from sqlalchemy import select

from unike.core.errors import UnikeError
from unike.core.folders import reason
from unike.store.blobs import Blobs
from unike.store.database import Database
from unike.store.tables import ABOUT

FILE, FOLDER = "store.db", "blobs"
"""What a store in a folder consists of."""


def check_new(database: Database, folder: Path | None, make: bool) -> None:
    """Refuse to make a store, or to make it there; what can be known of it before anything is made.

    Args:
        database: Is not there.
        folder: In which the store is to be; None where the database alone is named.
        make: Whether it may be made.

    Raises:
        UnikeError: As it says.
    """
    if not make:
        raise not_there(database.shown if folder is None else str(folder))
    try:
        if folder is not None and (folder.is_symlink() or folder.exists()):
            if not folder.exists():
                raise UnikeError(f"cannot make a store in {folder}: it is a link to nothing; give another folder")
            if not folder.is_dir() or any(not each.name.startswith(FILE) for each in folder.iterdir()):
                raise UnikeError(f"{folder} exists and is no store; give another folder")
    except OSError as error:
        raise UnikeError(f"cannot make a store in {folder}: {reason(error)}; give another folder") from None
    database.check_place()


def not_there(where: str) -> UnikeError:
    """What is said of a store that has to be there."""
    return UnikeError(f"there is no store in {where}; make one with unike store add")


def kept_at(database: Database, blobs: str | None) -> tuple[str, bool]:
    """Where the blobs of a store in a database are, and whether it knows that already.

    Raises:
        UnikeError: A new one is not told, or another place is named than the one it knows.
    """
    with database.reading() as connection:
        known = connection.scalar(select(ABOUT.c.value).where(ABOUT.c.key == "blobs"))
    if known is None:
        if blobs is None:
            raise UnikeError(f"{database.shown} is a new store; say where tensors and pictures go: --blobs URL")
        return (blobs if "://" in blobs else str(Path(blobs).absolute())), False
    if blobs is not None and Blobs(blobs).root != Blobs(known).root:
        raise UnikeError(f"{database.shown} has its tensors and pictures at {known}; leave --blobs out")
    return str(known), True
