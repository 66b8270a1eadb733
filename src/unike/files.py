"""Writing files so that nothing is ever half-written."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from unike.errors import UnikeError


def check_folder(folder: Path, *, known_by: str) -> None:
    """Refuse a folder that `replace_folder` could not write, without touching anything.

    Raises:
        UnikeError: As `replace_folder`.
    """
    try:
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / known_by).exists())):
            raise UnikeError(f"{folder} exists and is something else; choose another folder")
        above = next(parent for parent in folder.absolute().parents if parent.exists())
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise UnikeError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    if not above.is_dir():
        raise UnikeError(f"cannot write {folder}: {above} is not a folder; choose another folder")
    if not os.access(above, os.W_OK):
        raise UnikeError(f"cannot write {folder}: {above} is read-only; choose another folder")


def replace_folder(folder: Path, files: Mapping[str, bytes], *, known_by: str) -> None:
    """Write a folder of files as a whole: readers see the old one or the new one, never a mixture.

    Args:
        folder: Its parents are made.
        files: Name to content.
        known_by: A file name; an existing folder that is neither empty nor has this file is not ours to replace.

    Raises:
        UnikeError: The place cannot be written, or holds something else.
    """
    check_folder(folder, known_by=known_by)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UnikeError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    try:
        new = scratch / "new"
        new.mkdir()
        for name, content in files.items():
            with (new / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.replace(scratch / "old")
        new.replace(folder)
    except OSError as error:
        raise UnikeError(f"cannot write {folder}: {error.strerror}; nothing was changed") from None
    finally:
        if (scratch / "old").exists() and not folder.exists():  # an error or Ctrl-C came between the two renames
            (scratch / "old").replace(folder)
        shutil.rmtree(scratch, ignore_errors=True)
