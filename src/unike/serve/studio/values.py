"""What the page's tabs are told of a store."""

from dataclasses import dataclass

from unike.store import Stored


@dataclass(frozen=True)
class Made:
    """An edit that came into force in a set, and the version of the set that this made."""

    id: str
    set: str
    version: int


@dataclass(frozen=True)
class Listed:
    """Some of the edits that were looked for.

    Args:
        edits: The newest first.
        alive: The sets in which each is in force, by its id.
        total: How many there are in all.
        start: The place of the first, from 0 on.
    """

    edits: list[Stored]
    alive: dict[str, list[str]]
    total: int
    start: int


@dataclass(frozen=True)
class Change:
    """What rolling a set back would change.

    Args:
        set: Its name.
        version: What was in force then would be again.
        newest: The set's version that this was found out at.
        then: What was in force then, the bottom of the stack first.
        now: What is.
    """

    set: str
    version: int
    newest: int
    then: list[Stored]
    now: list[Stored]

    @property
    def is_nothing(self) -> bool:
        """Whether all would stay as it is."""
        return _ids(self.then) == _ids(self.now)

    @property
    def back(self) -> list[Stored]:
        """What would come into force."""
        return _without(self.then, self.now)

    @property
    def gone(self) -> list[Stored]:
        """What would be taken off."""
        return _without(self.now, self.then)

    @property
    def is_in_another_order(self) -> bool:
        """Whether what stays would stand in another order."""
        then, now = _ids(self.then), _ids(self.now)
        stay = {*then} & {*now}
        return [each for each in then if each in stay] != [each for each in now if each in stay]


def _ids(edits: list[Stored]) -> list[str]:
    return [each.id for each in edits]


def _without(some: list[Stored], others: list[Stored]) -> list[Stored]:
    gone = {*_ids(others)}
    return [each for each in some if each.id not in gone]
