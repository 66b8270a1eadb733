"""Which edits a request is answered under: a set of the store at a version, some edits by their ids, or none."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.edits.conflicts import in_force
from unike.edits.edit import Edit
from unike.edits.routing import RoutingEdit
from unike.serve.errors import ApiError, told
from unike.serve.keys import ANYONE, Holder

if TYPE_CHECKING:
    from unike.store import Store, Stored

DEFAULT = "default"
"""The set that is there before anything is in it."""


@dataclass(frozen=True, eq=False)
class EditSet:
    """Edits that a request is answered under; those of one key are the same.

    Args:
        key: Of the set and its version, or of the ids; the empty tuple for no edits.
        label: The same, for people: ``"tenant-a:7"``.
        ids: Of the edits in the store.
        edits: Those in force, oldest first.
    """

    key: Hashable
    label: str
    ids: tuple[str, ...]
    edits: tuple[Edit, ...]

    @cached_property
    def is_routed(self) -> bool:
        """Whether some of them rewrite or route questions."""
        return any(isinstance(edit, RoutingEdit) for edit in self.edits)


NOTHING = EditSet((), "", (), ())


class Sets:
    """Sets of a store as edits in memory.

    The version of a set is asked for each time, which is one cheap query, so that what was added or revoked, by
    whichever server, holds for the next request. Edits that several versions share are read once. A set may hold edits
    of several models: those of others are left out.

    Args:
        store: The store.
        backbone: The model that they act on.
        limit: Keep so many sets.
    """

    def __init__(self, store: Store, backbone: Backbone, limit: int = 256) -> None:
        self.store, self.backbone, self.limit = store, backbone, limit
        self._kept: OrderedDict[Hashable, EditSet] = OrderedDict()
        self._edits: WeakValueDictionary[str, Edit] = WeakValueDictionary()
        self._alive: dict[str, tuple[int, frozenset[str]]] = {}
        self._lock = Lock()
        self._reading: defaultdict[str, Lock] = defaultdict(Lock)

    def names(self, holder: Holder = ANYONE) -> list[str]:
        """The sets that ever had an edit, of those that someone sees."""
        return [name for name in self.store.sets() if holder.sees(name)]

    def version(self, name: str, holder: Holder = ANYONE) -> int:
        """The newest version of a set.

        Raises:
            ApiError: There is no such set, or not for this holder: it is not told which.
        """
        newest = self.store.version(name) if holder.sees(name) else 0
        if newest == 0 and not (name == DEFAULT and holder.sees(name)):
            first = [DEFAULT] if holder.sees(DEFAULT) else []
            known = ", ".join([*first, *(each for each in self.names(holder) if each != DEFAULT)][:20]) or "none"
            raise ApiError(404, f"there is no set {name[:80]!r} of edits (known: {known})", code="model_not_found")
        return newest

    def at(self, name: str, version: int | None = None, holder: Holder = ANYONE) -> int:
        """A version of a set; the newest if none is named.

        Raises:
            ApiError: There is no such set or version.
        """
        newest = self.version(name, holder)
        if version is None:
            return newest
        if not 0 <= version <= newest:
            message = f"the set {name!r} has the versions 0 to {newest}, and no {version}"
            raise ApiError(404, message, code="model_not_found")
        return version

    def named(self, name: str, version: int | None = None, holder: Holder = ANYONE) -> EditSet:
        """What is in force in a set, or was in a version of it.

        Raises:
            ApiError: There is no such set or version.
        """
        version = self.at(name, version, holder)
        with self._lock:
            reading = self._reading[name]
        with reading:  # of many requests that come after a change, one reads
            return self._get((name, version)) or self._read(name, version)

    def chosen(self, ids: Sequence[str], holder: Holder = ANYONE) -> EditSet:
        """Edits by their ids, in that order; the last of several about the same question is in force.

        Raises:
            ApiError: One is unknown, or in force in no set, or of another model.
        """
        try:
            stored = [self.store.find(each, holder.sets) for each in ids]
        except UnikeError as error:
            raise told(error, 404) from None
        alive = frozenset[str]().union(*map(self._ids, self.names(holder))) if stored else frozenset()
        for each in stored:
            if not self.fits(each):
                raise ApiError(409, f"the edit {each.id} was made for {each.source!r}, another model than this one")
            if each.id not in alive:
                raise ApiError(404, f"the edit {each.id} is revoked in every set; restore it first")
        key = tuple(dict.fromkeys(each.id for each in stored))
        label = ",".join(key) if len(key) <= 4 else f"{len(key)} edits"
        return self._get(key) or self._keep(key, label, stored)

    def fits(self, stored: Stored) -> bool:
        """Whether an edit was made for this model."""
        return self.backbone.is_known_as(stored.fingerprint)

    def _ids(self, name: str) -> frozenset[str]:
        """The edits that are in force in a set, of whichever model."""
        version = self.store.version(name)
        found = self._alive.get(name)
        if found is None or found[0] != version:
            found = self._alive[name] = version, frozenset(each.id for each in self.store.members(name, version))
        return found[1]

    def _get(self, key: Hashable) -> EditSet | None:
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def _read(self, name: str, version: int) -> EditSet:
        stored = self.store.members(name, version)
        known = {each: self.fits(next(s for s in stored if s.fingerprint == each)) for each in _fingerprints(stored)}
        return self._keep((name, version), f"{name}:{version}", [s for s in stored if known[s.fingerprint]])

    def _keep(self, key: Hashable, label: str, stored: Sequence[Stored]) -> EditSet:
        edits = {}
        for each in stored:
            edit = self._edits.get(each.id)
            if edit is None:
                edit = self._edits[each.id] = self.store.edit(each)
            edits[each.id] = edit
        made = EditSet(key, label, tuple(edits), tuple(in_force(list(edits.values()))))
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > self.limit:
                self._kept.popitem(last=False)
        return made


def _fingerprints(stored: Sequence[Stored]) -> set[str]:
    return {each.fingerprint for each in stored}
