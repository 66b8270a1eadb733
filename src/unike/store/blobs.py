"""Tensors and pictures by their content: a blob is called what its SHA-256 is, and is checked whenever it is read.

They lie in a folder or wherever else ``fsspec`` reaches, a bucket for example. A blob is there before anything in the
database names it; one that nothing names was left by a writer that was killed.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from unike.core import home
from unike.core.errors import Unavailable, UnikeError
from unike.core.files import replace_file
from unike.core.folders import reason
from unike.edits.files import is_hash
from unike.edits.saved import BytesSource, FileSource, Source

REFUSALS = (OSError, ValueError, RuntimeError, ImportError)
"""What file systems raise."""


@dataclass(frozen=True)
class Found:
    """A blob that lies there.

    Attributes:
        name: Its SHA-256.
        size: In bytes.
        age: In seconds, or 0 where it is not known.
    """

    name: str
    size: int
    age: float


class Blobs:
    """Where they lie.

    Args:
        url: A folder, or what ``fsspec`` takes: ``s3://bucket/folder``, ``memory://name``.

    Raises:
        UnikeError: There is no such file system.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.files, self.root = fsspec.core.url_to_fs(url)
        except REFUSALS as error:
            raise UnikeError(f"blobs cannot be kept at {url!r}: {error}") from None
        self.is_local = self.files.protocol == "file" or "file" in self.files.protocol

    def put(self, content: bytes) -> str:
        """Keep bytes; those that are there are as young as if they were written now: see `upkeep.collect`.

        Returns:
            Their name.

        Raises:
            UnikeError: They cannot be written.
        """
        name = name_of(content)
        if self.is_local and self.has(name) and self._renewed(name):
            return name
        place = self._place(name)
        try:
            self.files.makedirs(place.rpartition("/")[0], exist_ok=True)
            if self.is_local:
                replace_file(Path(place), content)
            else:
                self.files.pipe_file(place, content)
        except REFUSALS as error:
            raise Unavailable(f"cannot write to {self.url}: {reason_of(error)}") from None
        return name

    def _renewed(self, name: str) -> bool:
        """Whether a file was made as young as one that is written now; one of another user cannot be."""
        try:
            os.utime(self._place(name))
            return True
        except OSError:
            return False

    def has(self, name: str) -> bool:
        """Whether a blob is there, whole.

        Raises:
            UnikeError: It cannot be told.
        """
        try:
            return name_of(self.files.cat_file(self._place(name))) == name
        except FileNotFoundError:
            return False
        except REFUSALS as error:
            raise Unavailable(f"cannot read {self.url}: {reason_of(error)}") from None

    def get(self, name: str) -> bytes:
        """A blob.

        Raises:
            UnikeError: It is not there, or is not what its name says.
        """
        try:
            content: bytes = self.files.cat_file(self._place(name))
        except FileNotFoundError:
            raise Unavailable(f"the blob {name[:16]} is missing in {self.url}; bring it back, or pull it") from None
        except REFUSALS as error:
            raise Unavailable(f"cannot read {self.url}: {reason_of(error)}") from None
        if name_of(content) != name:
            raise Unavailable(f"the blob {name[:16]} in {self.url} was changed; bring it back, or pull it")
        return content

    def source(self, name: str, content: bytes) -> Source:
        """Where a blob can be read again; of one that does not lie on this machine its bytes are kept in memory."""
        return FileSource(self._place(name), name) if self.is_local else BytesSource(content, name)

    def path(self, name: str) -> Path:
        """A file with a blob, for what reads files; one that is fetched lies in the cache folder.

        Raises:
            UnikeError: As `get`.
        """
        if self.is_local:
            place = Path(self._place(name))
            if not place.is_file():
                self.get(name)
            return place
        place = home.folder() / "blobs" / name
        if not place.is_file():
            content = self.get(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            replace_file(place, content)
        return place

    def all(self) -> Iterator[Found]:
        """What lies there.

        Raises:
            UnikeError: It cannot be read.
        """
        try:
            listed: dict[str, Any] = self.files.find(self.root, detail=True) if self.files.exists(self.root) else {}
        except REFUSALS as error:
            raise Unavailable(f"cannot read {self.url}: {reason_of(error)}") from None
        for place, about in listed.items():
            name = place.rpartition("/")[2]
            if is_hash(name):
                yield Found(name, int(about.get("size") or 0), _age(about))

    def age(self, name: str) -> float:
        """Seconds since a blob was put, as it is now; 0 where it is not there, or that is not known.

        Raises:
            UnikeError: It cannot be read.
        """
        try:
            self.files.invalidate_cache()
            return _age(self.files.info(self._place(name)))
        except FileNotFoundError:
            return 0.0
        except REFUSALS as error:
            raise Unavailable(f"cannot read {self.url}: {reason_of(error)}") from None

    def drop(self, name: str) -> None:
        """Remove a blob.

        Raises:
            UnikeError: It cannot be removed.
        """
        try:
            self.files.rm_file(self._place(name))
        except FileNotFoundError:
            return
        except REFUSALS as error:
            raise Unavailable(f"cannot remove from {self.url}: {reason_of(error)}") from None

    def _place(self, name: str) -> str:
        """Where a blob is; a name that is no SHA-256 could lead anywhere."""
        if not is_hash(name):
            raise Unavailable(f"{name[:16]!r} is no name of a blob: the store is damaged; pull a whole one anew")
        return f"{self.root}/{name[:2]}/{name}"


def name_of(content: bytes) -> str:
    """What a blob is called."""
    return hashlib.sha256(content).hexdigest()


def reason_of(error: Exception) -> str:
    """Why a file system refuses, in its words."""
    return reason(error) if isinstance(error, OSError) else str(error)


def _age(about: dict[str, Any]) -> float:
    """Seconds since a file was written, of what a file system says about it."""
    for key in ("mtime", "created", "LastModified", "last_modified"):
        at = about.get(key)
        if at is not None:
            return time.time() - (at.timestamp() if hasattr(at, "timestamp") else float(at))
    return 0.0
