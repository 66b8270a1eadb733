"""Writing files so that nothing is ever half-written, and reading back only what was written."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unike.core.errors import UnikeError
from unike.core.memo import Memo, file_stamp

WORK = ".work"
"""Where a folder that is being made keeps what a run that was cut off goes on from."""


_HASHES: Memo[Path, str] = Memo(limit=100_000)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, which are read once, and again when the file has changed.

    Raises:
        OSError: It cannot be read.
    """
    return _HASHES.get(path, lambda: hashlib.sha256(path.read_bytes()).hexdigest(), stamp=file_stamp(path))


def replace_file(path: Path, content: bytes) -> None:
    """Write a file as a whole; its folder is there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UnikeError(f"cannot write {path}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Refuse a folder that nothing could be written to, whether it is there or would have to be made.

    Raises:
        UnikeError: It is a file, below one, or read-only.
    """
    try:
        above = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise UnikeError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    if not above.is_dir():
        raise UnikeError(f"cannot write {folder}: {above} is not a folder; choose another folder")
    if not os.access(above, os.W_OK):
        raise UnikeError(f"cannot write {folder}: {above} is read-only; choose another folder")


def check_folder(folder: Path, *, known_by: str) -> None:
    """Refuse a folder that `replace_folder` could not write, without touching anything.

    Raises:
        UnikeError: As `replace_folder`.
    """
    try:
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / known_by).exists())):
            raise UnikeError(f"{folder} exists and is something else; choose another folder")
    except OSError as error:
        raise UnikeError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    check_writable(folder.absolute().parent)  # it is replaced as a whole


def replace_folder(folder: Path, files: Mapping[str, bytes], *, known_by: str) -> None:
    """Write a folder of files as a whole: readers see the old one or the new one, never a mixture.

    Args:
        folder: Its parents are made.
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
    check_folder(folder, known_by=known_by)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UnikeError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    try:
        new = scratch / "new"
        new.mkdir()
        yield new
        for path in filter(Path.is_file, new.rglob("*")):
            with path.open("rb+") as file:
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


@dataclass(frozen=True)
class SealedFolder:
    """A kind of folder with two files, a description in JSON and tensors, that were saved together.

    Args:
        what: What such a folder holds, for messages: ``"edit"``.
        description: Name of the JSON file.
        tensors: Name of the safetensors file.
        version: Of the format.
        keys: What a description has to say, beside ``format`` and ``sha256``.
        older: Earlier versions that are read too.
    """

    what: str
    description: str
    tensors: str
    version: int
    keys: frozenset[str]
    older: frozenset[int] = frozenset()

    def files(self, described: Mapping[str, Any], content: bytes) -> dict[str, bytes]:
        """Both files, for `replace_folder`."""
        text = json.dumps(self.sign(described, content), indent=2, ensure_ascii=False) + "\n"
        return {self.description: text.encode(), self.tensors: content}

    def sign(self, described: Mapping[str, Any], content: bytes) -> dict[str, Any]:
        """The description with its ``format`` and, last, the ``sha256`` of both halves."""
        described = {"format": self.version, **described}
        return {**described, "sha256": seal(described, content)}

    def describe(self, folder: Path) -> dict[str, Any]:
        """The description alone, checked as far as that goes.

        Raises:
            UnikeError: None there, or not one this version can read.
        """
        path = folder / self.description
        if not path.is_file():
            raise UnikeError(f"no {self.what} in {folder}: {self.description} is missing")
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
            found = described["format"]
            if found not in {self.version, *self.older}:
                remedy = "update unike" if found > self.version else f"make the {self.what} anew"
                raise UnikeError(f"{path} has format {found}, this version reads {self.version}; {remedy}")
            if not self.keys | {"sha256"} <= described.keys():
                raise KeyError
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.damaged(folder, str(error) or "keys are missing") from None
        return dict(described)

    def read(self, folder: Path) -> tuple[dict[str, Any], bytes]:
        """The description and the bytes of the tensors.

        Raises:
            UnikeError: Nothing there, or something that was changed, cut short, or made by a newer version.
        """
        described = self.describe(folder)
        try:
            content = (folder / self.tensors).read_bytes()
        except OSError as error:
            raise UnikeError(f"cannot read {folder / self.tensors}: {error.strerror}") from None
        if seal(described, content) != described["sha256"]:
            raise UnikeError(
                f"the {self.what} in {folder} is damaged: its files are not those that were saved; "
                f"make the {self.what} anew"
            )
        return described, content

    def damaged(self, folder: Path, why: str) -> UnikeError:
        """The error for a description that cannot be understood."""
        return UnikeError(f"{folder / self.description} is damaged: {why}; make the {self.what} anew")


def seal(described: Mapping[str, Any], content: bytes) -> str:
    """SHA-256 of both halves of what is saved: tensors under another description would not mean the same."""
    rest = {key: value for key, value in described.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode() + content).hexdigest()
