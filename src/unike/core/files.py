"""Files: read only if they are files, never half-written, and sealed together with what belongs to them."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from unike.core import scratch
from unike.core.errors import UnikeError
from unike.core.folders import is_there, reason, settle
from unike.core.memo import Memo, file_stamp
from unike.core.schema import parse_json

ATTEMPTS = 100
"""How often a folder is read again because another has taken its place meanwhile."""

Read = TypeVar("Read")

_HASHES: Memo[Path, str] = Memo(limit=100_000)


class NotAFile(OSError):
    """There is something under a name, but no file: it would never end, or do something when it is opened."""

    def __init__(self, mode: int) -> None:
        what = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        super().__init__(f"it is {what}, not a file")
        self.strerror = self.args[0]


def check_file(path: Path) -> None:
    """Refuse what is there but no file, without opening it.

    Raises:
        NotAFile: As it says.
        OSError: It cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except ValueError as error:  # a name with a null byte
        raise OSError(str(error)) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise NotAFile(mode)


def open_file(path: Path, mode: str = "rb") -> IO[bytes]:
    """`open` for bytes, for files alone: opening a pipe would wait for ever, and a device is not ours to touch.

    Raises:
        NotAFile: As it says.
        OSError: It cannot be opened.
    """
    check_file(path)

    def opener(name: str, flags: int) -> int:
        number = os.open(name, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
        found = os.fstat(number).st_mode
        if not stat.S_ISREG(found):  # it has become something else since
            os.close(number)
            raise NotAFile(found)
        return number

    return open(path, mode, opener=opener)


def read_file(path: Path) -> bytes:
    """All of a file.

    Raises:
        NotAFile: As it says.
        OSError: It cannot be read.
    """
    with open_file(path) as file:
        return file.read()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, which are read once, and again when the file has changed.

    Raises:
        OSError: It cannot be read.
    """
    return _HASHES.get(path, lambda: hashlib.sha256(read_file(path)).hexdigest(), stamp=file_stamp(path))


def check_replaceable(path: Path) -> None:
    """Refuse a file that `replace_file` could not write, without touching anything.

    Raises:
        UnikeError: As `replace_file`.
    """
    try:
        check_file(path)
        if not path.absolute().parent.is_dir():
            raise UnikeError(f"cannot write {path}: there is no folder {path.parent}")
        if not os.access(os.path.dirname(os.path.realpath(path)), os.W_OK):
            raise UnikeError(f"cannot write {path}: {path.parent} is read-only")
    except OSError as error:
        raise UnikeError(f"cannot write {path}: {reason(error)}; give another name") from None


def replace_file(path: Path, content: bytes) -> None:
    """Write a file as a whole; its folder is there. If it is a link, the file that it leads to is replaced.

    Raises:
        UnikeError: It cannot be written, or is something else than a file.
    """
    try:
        place = Path(os.path.realpath(path))
        check_file(place)
        scratch.sweep(place)
        with scratch.scratch_file(place) as (hidden, file):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            file.close()
            hidden.replace(place)
    except (OSError, ValueError) as error:
        raise UnikeError(f"cannot write {path}: {reason(error)}") from None


def append_lines(path: Path, lines: str) -> None:
    """Append whole lines in one write, so that those of several processes do not mix; one that was cut short is ended.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_file(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                lines = "\n" + lines
        file.write(lines.encode())


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
        # Half a character, of a file's name that is not UTF-8, is escaped as JSON does.
        return {self.description: text.encode(errors="backslashreplace"), self.tensors: content}

    def sign(self, described: Mapping[str, Any], content: bytes) -> dict[str, Any]:
        """The description with its ``format`` and, last, the ``sha256`` of both halves."""
        described = {"format": self.version, **described}
        return {**described, "sha256": seal(described, content)}

    def lies_in(self, folder: Path) -> bool:
        """Whether a folder has such a description."""
        settle(folder)
        return (folder / self.description).is_file()

    def describe(self, folder: Path) -> dict[str, Any]:
        """The description alone, checked as far as that goes.

        Raises:
            UnikeError: None there, or not one this version can read.
        """
        return self._steadily(folder, self._describe)

    def read(self, folder: Path) -> tuple[dict[str, Any], bytes]:
        """The description and the bytes of the tensors.

        Raises:
            UnikeError: Nothing there, or something that was changed, cut short, or made by a newer version.
        """
        return self._steadily(folder, self._read)

    def _steadily(self, folder: Path, read: Callable[[Path], Read]) -> Read:
        """What is read of a folder, all of it from one: again if another has taken its place meanwhile."""
        settle(folder)
        for attempt in range(ATTEMPTS):
            before = _stamp(folder)
            try:
                return read(folder)
            except UnikeError:
                if attempt and before == _stamp(folder):
                    raise
                settle(folder)
        return read(folder)

    def _describe(self, folder: Path) -> dict[str, Any]:
        path = folder / self.description
        try:
            if not is_there(path):
                raise UnikeError(f"no {self.what} in {folder}: {self.description} is missing")
            described = parse_json(read_file(path))
            found = described["format"]
            if found not in {self.version, *self.older}:
                remedy = "update unike" if found > self.version else f"make the {self.what} anew"
                raise UnikeError(f"{path} has format {found}, this version reads {self.version}; {remedy}")
            if not self.keys | {"sha256"} <= described.keys():
                raise KeyError
        except OSError as error:
            raise UnikeError(f"cannot read {path}: {reason(error)}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.damaged(folder, str(error) or "keys are missing") from None
        return dict(described)

    def _read(self, folder: Path) -> tuple[dict[str, Any], bytes]:
        described = self._describe(folder)
        try:
            content = read_file(folder / self.tensors)
        except OSError as error:
            raise UnikeError(f"cannot read {folder / self.tensors}: {reason(error)}") from None
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


def _stamp(folder: Path) -> Hashable:
    """Another one when another folder has taken a folder's place."""
    with suppress(OSError, ValueError):
        there = folder.stat()
        return there.st_ino, there.st_mtime_ns, there.st_ctime_ns
    return None
