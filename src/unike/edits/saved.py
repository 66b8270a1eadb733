"""Tensors of an edit that was loaded: read from its file when they are asked for, if that is still what it was.

An edit that stands by in a large stack is compared with every input, and does nothing else. So of one that was loaded,
only what is compared with (`Edit.standing`) stays in memory, in half the bytes where nothing is lost. All else is read
from its file when an input calls upon the edit, and what was read lately is kept for all edits together (`RECENT`).

Whatever is read is held against the SHA-256 that the file had when its seal was checked. So it does not matter what
became of the file meanwhile: another file of the same bytes serves as well, and any other is refused. No file is kept
open, for there may be more edits than a process may open files.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

from unike.core.errors import Unavailable
from unike.core.files import read_file
from unike.core.folders import reason
from unike.edits.content import from_bytes
from unike.edits.tensors import OnDemand, Size, unpacked


class Source(Protocol):
    """Where the bytes of an edit's tensors are."""

    @property
    def sha256(self) -> str:
        """Of the bytes."""

    def read(self) -> bytes:
        """Them, and no others.

        Raises:
            UnikeError: They are no longer there.
        """


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file that was read before.

    Args:
        path: Where it is.
        sha256: Of its bytes as they were then.
    """

    path: str
    sha256: str

    def read(self) -> bytes:
        """As `Source.read`."""
        try:
            content = read_file(Path(self.path))
        except OSError as error:
            raise Unavailable(
                f"cannot read {self.path}, from which an edit was loaded: {reason(error)}; bring it back, or load "
                "the edit anew"
            ) from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise Unavailable(f"{self.path} was changed since an edit was loaded from it; load the edit anew")
        return content


@dataclass(frozen=True, slots=True)
class BytesSource:
    """Bytes in memory, for what lies where reading takes long.

    Args:
        content: The bytes.
        sha256: Theirs.
    """

    content: bytes
    sha256: str

    def read(self) -> bytes:
        """As `Source.read`."""
        return self.content


class Recent:
    """Tensors of files that were read lately, as they lie there; for any number of threads.

    Args:
        limit: Bytes, of all together; what is larger by itself is not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[str, Mapping[str, Tensor]] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def get(self, source: Source) -> Mapping[str, Tensor]:
        """The tensors of a file, by name; not to be changed.

        Raises:
            UnikeError: As `Source.read`.
        """
        with self._lock:
            if source.sha256 in self._kept:
                self._kept.move_to_end(source.sha256)
                return self._kept[source.sha256]
        tensors = from_bytes(source.read())
        self.keep(source.sha256, tensors)
        return tensors

    def keep(self, sha256: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of a file that was read anyway."""
        with self._lock:
            if sha256 in self._kept or _size(tensors) > self.limit:
                return
            self._kept[sha256] = tensors
            self._size += _size(tensors)
            while self._size > self.limit:
                self._size -= _size(self._kept.popitem(last=False)[1])

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._kept.clear()
            self._size = 0


RECENT = Recent(8 << 20)
"""Some fifty edits of the bundled model."""


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


class _Standing:
    """Where small tensors lie in a piece of memory: as an object of torch each would take some hundred bytes more.

    Args:
        forms: For each its name, its shape and its dtype.
    """

    def __init__(self, forms: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]) -> None:
        self.at: dict[str, tuple[int, int, tuple[int, ...], torch.dtype]] = {}
        start = 0
        for name, shape, dtype in forms:
            count = math.prod(shape)
            self.at[name] = start, count, shape, dtype
            start += count * dtype.itemsize

        self.size = start
        self._lock = Lock()
        self._drawer, self._taken = torch.empty(0, start, dtype=torch.uint8), 0

    def put(self, content: bytes) -> "_Place":
        """Keep the bytes of one edit, beside those of others: many small pieces, once freed, stay with the process."""
        with self._lock:
            if self._taken == len(self._drawer):
                self._drawer, self._taken = torch.empty(DRAWER, self.size, dtype=torch.uint8), 0
            drawer, row = self._drawer, self._taken
            self._taken += 1
        drawer[row] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return drawer, row

    def tensor(self, name: str, place: "_Place") -> Tensor:
        """One of them; a copy."""
        start, count, shape, dtype = self.at[name]
        where, number = place
        if isinstance(where, Tensor):
            part = where[number, start : start + count * dtype.itemsize].clone()
            return part.view(dtype).reshape(shape)
        return where[name][:, number].reshape(shape).clone()


_Place = tuple[Tensor | Mapping[str, Tensor], int]
"""A row of a drawer ``[DRAWER, bytes]``, or a number in a block of many edits, ``[1, g, n]`` by name."""

DRAWER = 1024
"""Edits whose small tensors are kept in one piece."""

_standing_as = lru_cache(maxsize=1024)(_Standing)
"""The same object for edits that are alike in that."""


class _Saved:
    """Makes tensors of a file; those that stand by are in memory.

    Args:
        source: The file.
        some: Tensors of it that stand by, as they lie there.
    """

    __slots__ = ("kept", "source", "standing")

    def __init__(self, source: Source, some: Mapping[str, Tensor]) -> None:
        self.source = source
        self.standing = _standing_as(tuple((name, tuple(t.shape), t.dtype) for name, t in some.items()))
        whole = [tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in some.values()]
        self.kept: _Place = self.standing.put(b"".join(whole))

    def __reduce__(self) -> tuple[Any, ...]:
        return _Saved, (self.source, {name: self.standing.tensor(name, self.kept) for name in self.standing.at})

    def __call__(self, name: str) -> Tensor:
        if name in self.standing.at:
            return unpacked(self.standing.tensor(name, self.kept))
        tensor = RECENT.get(self.source)[name]
        return unpacked(tensor) if tensor.dtype == torch.bfloat16 else tensor.clone()


def saved(source: Source, tensors: Mapping[str, Tensor], standing: Collection[str]) -> OnDemand:
    """Tensors that are read from a file when they are asked for.

    Args:
        source: The file.
        tensors: Of it, as they lie there.
        standing: Names of those that stay in memory.
    """
    RECENT.keep(source.sha256, tensors)
    dtypes = {name: torch.float32 if t.dtype == torch.bfloat16 else t.dtype for name, t in tensors.items()}
    sizes = {name: Size(tuple(tensor.shape), dtypes[name]) for name, tensor in tensors.items()}
    return OnDemand(sizes, _Saved(source, {name: tensors[name] for name in standing if name in tensors}))


def stand_at(tensors: Mapping[str, Tensor], block: Mapping[str, Tensor], number: int) -> None:
    """Let tensors of a file that stand by be read from a block of many edits, and not be kept twice.

    Args:
        tensors: Of one edit; those that are of no file stay as they are.
        block: ``[1, g, n]`` each.
        number: Which of the g edits it is.
    """
    if isinstance(tensors, OnDemand) and isinstance(tensors.make, _Saved):
        tensors.make.kept = block, number
