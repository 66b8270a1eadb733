"""Which rows of a flat batch belong to which request, and where its prompt ends.

An engine puts the tokens that it computes in one pass behind each other, those of all requests: a part of a prompt of
one, the next token of another. What acts for a request is kept by its name from pass to pass, until the engine knows it
no more. A request that was set aside and is computed anew begins anew.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """What a pass computes of one request.

    Args:
        request: Its name.
        begin: The first of its rows in the flat batch.
        end: Behind the last.
        offset: Which of the request's tokens, counted from 0, the first of the rows is.
        prompt: How many tokens its prompt has.
    """

    request: str
    begin: int
    end: int
    offset: int
    prompt: int

    def __len__(self) -> int:
        """How many rows."""
        return self.end - self.begin

    @property
    def last(self) -> int:
        """Where the prompt's last token is, counted from the first of the rows; it may lie outside of them."""
        return self.prompt - 1 - self.offset

    @property
    def is_before_last(self) -> bool:
        """Whether the prompt goes on behind these rows."""
        return self.last >= len(self)

    @property
    def has_last(self) -> bool:
        """Whether the prompt's last token is one of the rows; then tokens of an answer may follow it."""
        return 0 <= self.last < len(self)


def rows_of(
    requests: Sequence[str], starts: Sequence[int], computed: Sequence[int], prompts: Sequence[int]
) -> Iterator[Rows]:
    """The rows of each request of a pass.

    Args:
        requests: Names, in the order of the batch.
        starts: Where the rows of each begin, and, at last, where those of the last one end; what is behind does not
            count.
        computed: How many tokens of each were computed before.
        prompts: How many tokens the prompt of each has.

    Raises:
        ValueError: Rows of one end before they begin.
    """
    for number, request in enumerate(requests):
        begin, end = int(starts[number]), int(starts[number + 1])
        if end < begin:
            raise ValueError(f"the rows of {request} begin at {begin} and end at {end}")
        if end > begin:
            yield Rows(request, begin, end, int(computed[number]), int(prompts[number]))


class Book(Generic[T]):
    """What acts for each request.

    Args:
        begin: Makes it, when a request's first token is computed; None for a request that nothing acts for.
    """

    def __init__(self, begin: Callable[[str], T | None]) -> None:
        self._begin = begin
        self._kept: dict[str, T | None] = {}
        self._next: dict[str, int] = {}

    def __len__(self) -> int:
        """How many requests are known."""
        return len(self._kept)

    def turn(self, batch: Sequence[Rows], known: Collection[str]) -> list[tuple[Rows, T]]:
        """Take in a pass.

        Args:
            batch: Its rows.
            known: The requests that the engine knows, in this pass or not; others are forgotten.

        Returns:
            Those of requests that something acts for, with that.

        Raises:
            ValueError: Tokens of such a request were left out: its prompt was not read as a whole.
        """
        for gone in [request for request in self._kept if request not in known]:
            del self._kept[gone], self._next[gone]
        found = []
        for rows in batch:
            if rows.offset == 0:
                self._kept[rows.request] = self._begin(rows.request)
            elif rows.request not in self._kept or self._next[rows.request] != rows.offset:
                before = self._next.get(rows.request, 0)
                raise ValueError(f"tokens {before} to {rows.offset} of the request {rows.request} were not computed")
            self._next[rows.request] = rows.offset + len(rows)
            kept = self._kept[rows.request]
            if kept is not None:
                found.append((rows, kept))
        return found
