"""Answers that are wanted, and which of those that wait are written together."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

from unike.backbones.decoding import Decoding
from unike.data.queries import Query
from unike.serve.sets import EditSet

SMALL = 64
"""Edits of a set that may share a batch with other sets."""

CELLS = 256
"""Rows of a batch of several sets, times the edits of the largest: so many are copied side by side for it."""


class TimedOut(Exception):
    """The answer was not there in time."""


class Gone(Exception):
    """Nobody wants the answer any more."""


@dataclass(eq=False)
class Job:
    """One answer that is wanted.

    Args:
        query: What is asked.
        decoding: How the answer is written, and what it was.
        edits: Under which it is asked.
        over: Called once, from the engine's thread, when there is an answer or an error.
        deadline: When it is too late, as `time.monotonic` counts.
    """

    query: Query
    decoding: Decoding
    edits: EditSet
    over: Callable[[], None] = lambda: None
    deadline: float = float("inf")

    error: Exception | None = field(default=None, init=False)
    is_over: bool = field(default=False, init=False)
    is_gone: bool = field(default=False, init=False)
    """Set by whoever no longer waits for it."""

    def __post_init__(self) -> None:
        """Let the decoding say when it is over, and ask whether it is wanted."""
        self.decoding.cancelled, self.decoding.ended = self.is_unwanted, self.finish

    def is_unwanted(self) -> bool:
        """Whether nobody waits for it, or it is too late."""
        return self.is_gone or time.monotonic() > self.deadline

    def finish(self, error: Exception | None = None) -> None:
        """It is answered, or cannot be; what comes after the first time does not count."""
        if self.is_over:
            return
        if error is None and (self.decoding.reason in (None, "cancelled")):
            error = Gone() if self.is_gone else TimedOut()
        self.error, self.is_over = error, True
        self.over()

    def anew(self) -> bool:
        """Get ready to be answered again, if nothing has been said yet."""
        if self.is_over or self.decoding.text:
            return False
        self.decoding = replace(self.decoding)
        return True


def together(waiting: Sequence[Job], most: int) -> list[Job]:
    """Which jobs are answered next, in one batch: the one that has waited longest, and those that can go with it.

    Rows under one set see one stack, however large. Rows of several small sets share a batch too, each with copies of
    its own edits, as long as these are not too many. Methods that rewrite or route questions are asked one by one.

    Args:
        waiting: At least one, in the order of their coming.
        most: Rows of a batch.
    """
    first = waiting[0]
    if first.edits.is_routed:
        return [first]
    same = [job for job in waiting if job.edits.key == first.edits.key][:most]
    if len(first.edits.edits) > SMALL:
        return same
    found: list[Job] = []
    keys: set[Hashable] = set()
    largest = 0
    for job in waiting:
        size = len(job.edits.edits)
        if job.edits.is_routed or size > SMALL:
            continue
        wider = max(largest, size)
        mixed = bool(keys - {job.edits.key})
        if len(found) < most and (not mixed or (len(found) + 1) * wider <= CELLS):
            found.append(job)
            keys.add(job.edits.key)
            largest = wider
    return max(found, same, key=len)
