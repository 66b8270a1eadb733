"""What is worked out once and kept: by a key, for as long as the object lives that it is about, and no file changes."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Memo(Generic[Key, Value]):
    """Values by key. Threads that ask for the same one wait for the first of them to make it.

    Args:
        limit: Keep at most so many, those that were made last; None for all.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._kept: dict[Key, tuple[Hashable, Value]] = {}
        self._limit = limit
        self._lock = RLock()  # what makes one value may ask for another

    def get(self, key: Key, make: Callable[[], Value], *, stamp: Hashable = None) -> Value:
        """The value of a key.

        Args:
            key: What it is known by.
            make: Called if there is none yet, or one with another stamp. What it raises is not kept.
            stamp: Of what the value is made from, for example `file_stamp`.
        """
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept[0] != stamp:
                self._keep(key, stamp, make())
            return self._kept[key][1]

    def get_all(self, keys: Sequence[Key], make: Callable[[Sequence[Key]], Mapping[Key, Value]]) -> dict[Key, Value]:
        """The values of several keys; those that are missing are made together.

        Args:
            keys: What they are known by.
            make: Called with the missing keys, each once and in their order, if there are any.
        """
        with self._lock:
            missing = [key for key in dict.fromkeys(keys) if key not in self._kept]
            made = make(missing) if missing else {}
            found = {key: made[key] if key in made else self._kept[key][1] for key in keys}
            for key, value in made.items():
                self._keep(key, None, value)
            return found

    def _keep(self, key: Key, stamp: Hashable, value: Value) -> None:
        self._kept.pop(key, None)
        if self._limit is not None and len(self._kept) >= self._limit:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = stamp, value


class MemoOf(Generic[Key, Value]):
    """A `Memo` for each of several objects, forgotten with it; a value must not hold on to its object."""

    def __init__(self) -> None:
        self._memos: WeakKeyDictionary[object, Memo[Key, Value]] = WeakKeyDictionary()
        self._lock = RLock()

    def of(self, owner: object) -> Memo[Key, Value]:
        """The memo of one object."""
        with self._lock:
            return self._memos.setdefault(owner, Memo())


def file_stamp(path: Path) -> Hashable:
    """Another value whenever a file was replaced or written to; None if there is none to be seen. Reads no file."""
    try:
        there = path.stat()
    except (OSError, ValueError):  # not there, not to be looked at, or no path at all
        return None
    return str(path), there.st_ino, there.st_mtime_ns, there.st_size
