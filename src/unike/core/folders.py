"""Folders that are written as a whole: readers see the old one or the new one, whatever happens to their writer."""

import ctypes
import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unike.core import scratch
from unike.core.errors import UnikeError

WORK = ".work"
"""Where a folder that is being made keeps what a run that was cut off goes on from."""

NEW, OLD = "new", "old"
"""Within a hidden folder: what is to take a folder's place, and what had it."""

ATTEMPTS = 100
"""How often a writer tries again because another came first."""

PATIENCE = 2.0
"""Seconds that a reader waits for a writer that has taken a folder away and not yet put another there."""


def check_writable(folder: Path) -> None:
    """Refuse a folder that nothing could be written to, whether it is there or would have to be made.

    Raises:
        UnikeError: It is a file, below one, or read-only.
    """
    try:
        above = next(place for place in (folder.absolute(), *folder.absolute().parents) if is_there(place))
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be read
        raise UnikeError(f"cannot write {folder}: {reason(error)}; choose another folder") from None
    if not above.is_dir():
        raise UnikeError(f"cannot write {folder}: {above} is not a folder; choose another folder")
    if not os.access(above, os.W_OK):
        raise UnikeError(f"cannot write {folder}: {above} is read-only; choose another folder")


def given_folder(folder: Any) -> Path:
    """A folder as a program names it.

    Raises:
        UnikeError: It is no path.
    """
    if isinstance(folder, str | os.PathLike) and isinstance(os.fspath(folder), str):
        return Path(folder)
    raise UnikeError(f"a folder is a path, not {type(folder).__name__} {folder!r}")


def try_place(folder: Path) -> None:
    """Refuse a folder in whose place nothing can be made, whatever its rights say; nothing is left of the trial.

    Before long work whose result is to be written there: to root, ``/proc`` looks like any other folder.

    Raises:
        UnikeError: As it says.
    """
    check_writable(folder.absolute().parent)
    try:
        above = next(place for place in folder.absolute().parents if is_there(place))
        os.rmdir(tempfile.mkdtemp(prefix=".unike-trial-", dir=above))
    except OSError as error:
        raise UnikeError(f"cannot write {folder}: {reason(error)}; choose another folder") from None


def is_there(path: Path) -> bool:
    """Whether there is anything under a name; unlike `Path.exists`, the same in every version of Python.

    Raises:
        OSError: The name is too long, or may not be looked at.
        ValueError: It is no name at all.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def reason(error: Exception) -> str:
    """Why the system refused, in its words."""
    return str(getattr(error, "strerror", None) or error)


def check_folder(folder: Path, *, known_by: str) -> None:
    """Refuse a folder that `replace_folder` could not write, without touching anything.

    Raises:
        UnikeError: As `replace_folder`.
    """
    try:
        for attempt in reversed(range(ATTEMPTS)):
            if not is_something_else(folder, known_by):
                break
            if not attempt or not scratch.of(folder):
                raise UnikeError(f"{folder} exists and is something else; choose another folder")
            time.sleep(0.01)  # a writer is at work, and what was looked at may have been what it takes away
    except (OSError, ValueError) as error:
        raise UnikeError(f"cannot write {folder}: {reason(error)}; choose another folder") from None
    check_writable(folder.absolute().parent)  # it is replaced as a whole


def is_something_else(folder: Path, known_by: str) -> bool:
    """Whether a place holds what is neither an empty folder nor one with a certain file.

    Raises:
        OSError: It cannot be looked at.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return folder.is_symlink()
    except NotADirectoryError:
        return os.path.lexists(folder)  # else it would lie below a file
    return bool(names) and known_by not in names


def replace_folder(folder: Path, files: Mapping[str, bytes], *, known_by: str) -> None:
    """Write a folder of files as a whole: readers see the old one or the new one, never a mixture.

    Args:
        folder: Its parents are made; if it is a link, what it leads to is replaced.
        files: Name to content.
        known_by: A file name; an existing folder that is neither empty nor has this file is not ours to replace.

    Raises:
        UnikeError: The place cannot be written, or holds something else.
    """
    with new_folder(folder, known_by=known_by) as new:
        for name, content in files.items():
            (new / name).write_bytes(content)


@contextmanager
def new_folder(folder: Path, *, known_by: str) -> Iterator[Path]:
    """An empty folder to fill within the block, which then takes the place of ``folder`` as a whole.

    If the block fails, nothing is left of what it wrote, and ``folder`` is as it was.

    Args:
        folder: As in `replace_folder`.
        known_by: As in `replace_folder`.

    Raises:
        UnikeError: As `replace_folder`.
    """
    place = Path(os.path.realpath(folder))
    settle(place)
    check_folder(place, known_by=known_by)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch.sweep(place)
        with scratch.scratch_folder(place) as hidden:
            (hidden / NEW).mkdir()
            yield hidden / NEW
            for path in filter(Path.is_file, (hidden / NEW).rglob("*")):
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            take_place(hidden, place)
    except OSError as error:
        raise UnikeError(f"cannot write {folder}: {reason(error)}; nothing was changed") from None


def take_place(hidden: Path, place: Path) -> None:
    """Put ``hidden/new`` where ``place`` is, in one step if the system can; what was there is in ``hidden`` then.

    Raises:
        OSError: It cannot be done; ``place`` is as it was.
    """
    for attempt in reversed(range(ATTEMPTS)):
        try:
            if is_there(place):
                if exchange(hidden / NEW, place):
                    return
                shutil.rmtree(hidden / OLD, ignore_errors=True)
                place.replace(hidden / OLD)
            (hidden / NEW).replace(place)
            return
        except OSError as error:
            if not attempt or error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise  # else another writer came between looking and renaming
        finally:
            with suppress(OSError):  # another writer has just put its own there
                if (hidden / OLD).exists() and not place.exists():  # an error or Ctrl-C came between the two renames
                    (hidden / OLD).replace(place)


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step.

    Returns:
        Whether they have; the system or the file system may not know how.

    Raises:
        OSError: One is not there, or may not be renamed.
    """
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:  # an old C library
        return False
    at_working_folder, exchanged = -100, 2
    if rename(at_working_folder, os.fsencode(one), at_working_folder, os.fsencode(other), exchanged) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def settle(place: Path) -> None:
    """Wait until a folder that a writer has taken away is there again; put it back if the writer was killed.

    Does nothing if nobody was writing it.
    """
    end = time.monotonic() + PATIENCE
    place = Path(os.path.realpath(place))
    with suppress(OSError, ValueError):
        while not is_there(place):
            with scratch.abandoned(place) as left:
                for hidden in left:
                    if (hidden / OLD).is_dir() and not is_there(place):
                        (hidden / OLD).replace(place)
            if time.monotonic() > end or not any((hidden / OLD).is_dir() for hidden in scratch.of(place)):
                return
            time.sleep(0.01)
