"""What is being written lies beside what it will replace, under a hidden name that nobody can guess, and locked.

The system lets go of the lock when its writer ends, however it ends: what is not locked was left by a killed one.
"""

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not a Unix: nothing is known to be left over, and nothing is swept
    fcntl = None  # type: ignore[assignment]

ENDING = ".unike"
LONGEST = 180
"""Bytes of a name that a hidden one repeats; file systems take 255."""


def stem(path: Path) -> str:
    """How the hidden names of a path begin."""
    name = path.name
    if len(os.fsencode(name)) > LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}-"


def new_name(path: Path) -> Path:
    """A hidden name beside a path that is not taken."""
    return path.with_name(f"{stem(path)}{secrets.token_hex(8)}{ENDING}")


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside a path, locked and, after the block, gone with what is in it.

    Raises:
        OSError: It cannot be made.
    """
    while True:
        folder = new_name(path)
        folder.mkdir(mode=0o700)
        lock = locked(folder)
        if folder.exists():  # else somebody swept it before it was locked
            break
        release(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        release(lock)


@contextmanager
def scratch_file(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A hidden file beside a path, open for writing and locked; after the block it is gone, unless it was renamed.

    Raises:
        OSError: It cannot be made.
    """
    while True:
        hidden = new_name(path)
        file = hidden.open("xb")  # never follows a link that somebody put there
        lock = locked(hidden)
        if hidden.exists():
            break
        file.close()
        release(lock)
    try:
        mode = path.stat().st_mode if path.exists() else None
        if mode is not None:
            with suppress(OSError):
                hidden.chmod(stat.S_IMODE(mode))
        with file:
            yield hidden, file
    finally:
        hidden.unlink(missing_ok=True)
        release(lock)


def locked(path: Path, *, wait: bool = True) -> int | None:
    """Lock a file or folder.

    Args:
        path: What is locked.
        wait: For whoever has the lock.

    Returns:
        What `release` takes; None if another has it, or the system has no such locks.
    """
    if fcntl is None:
        return None
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(number)
        return None
    return number


def release(lock: int | None) -> None:
    """Let go of what `locked` returned."""
    if lock is not None:
        os.close(lock)


def of(path: Path) -> list[Path]:
    """What lies beside a path under its hidden names, whoever writes it or did."""
    try:
        with os.scandir(path.parent) as there:
            names = [entry.name for entry in there if entry.name.startswith(stem(path))]
    except OSError:
        return []
    return [path.with_name(name) for name in sorted(names) if name.endswith(ENDING)]


@contextmanager
def abandoned(path: Path) -> Iterator[list[Path]]:
    """What killed writers left beside a path, locked for as long as the block runs."""
    found = {place: lock for place in of(path) if (lock := locked(place, wait=False)) is not None}
    try:
        yield [place for place in found if place.exists()]
    finally:
        for lock in found.values():
            release(lock)


def sweep(path: Path) -> None:
    """Remove what killed writers left beside a path."""
    with abandoned(path) as left:
        for place in left:
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place, ignore_errors=True)
            else:
                with suppress(OSError):
                    place.unlink()
