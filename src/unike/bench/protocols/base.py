"""What a protocol is given of one question under an edit, and what it gives back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import ProbeKind

Scores = dict[str, float | None]
"""``"protocol/scorer"`` to a value from 0 to 1, or None where the protocol is not defined."""


@dataclass(frozen=True)
class Prediction:
    """What is predicted along a text, before the first edit and under the edits.

    Args:
        tokens: The text's n tokens, without the one that ends an answer.
        before: The most likely token at each, given those before it; n.
        after: The same under the edits.
        ranks_before: For every position of prompt and text, its most likely ids, best first; None if they were not read
            or if the method has other positions.
        ranks_after: The same under the edits.
    """

    tokens: Sequence[int]
    before: Sequence[int]
    after: Sequence[int]
    ranks_before: Sequence[Sequence[int]] | None = None
    ranks_after: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True)
class Response:
    """A question before and under an edit.

    Args:
        kind: What it tests.
        target: The gold answer, or None.
        has_image: Whether it is about a picture.
        before: Greedy answer before the first edit.
        after: Greedy answer under the edits.
        at_gold: Along the gold answer, if there is one.
        at_own: Along the answer before the edit; None where that is not read, or empty.
        also: Further answers that are as right as the gold one.
    """

    kind: ProbeKind
    target: str | None
    has_image: bool
    before: str
    after: str
    at_gold: Prediction | None = None
    at_own: Prediction | None = None
    also: tuple[str, ...] = ()

    @property
    def along_gold(self) -> Prediction:
        """Along the gold answer that this kind of question must have."""
        assert self.at_gold is not None, f"{self.kind.name} without a gold answer"
        return self.at_gold


class Protocol(ABC):
    """A way to score answers: a class whose ``name`` is its file's.

    Attributes:
        order: Its place in tables; those of one place by their names.
        views: What one column or table shows, and the scorers in it, one a kind of question. Summaries hold more.
        reads_ranks: Whether it wants ``ranks`` of a `Prediction`, which cost time.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 100
    views: ClassVar[Mapping[str, tuple[str, ...]]]
    reads_ranks: ClassVar[bool] = False

    @abstractmethod
    def score(self, response: Response) -> Scores:
        """What an answer is worth: ``"name/scorer"`` to a share."""


@cache
def all_protocols() -> dict[str, Protocol]:
    """Every protocol by its name, in the order of tables."""
    found: list[Protocol] = [registry.protocols.get(name)() for name in registry.protocols.names()]
    return {each.name: each for each in sorted(found, key=lambda each: (each.order, each.name))}


@cache
def views() -> dict[str, tuple[str, ...]]:
    """What one column or table can show, named after its protocol, and the scorers in it."""
    return {view: scorers for protocol in all_protocols().values() for view, scorers in protocol.views.items()}


def agreement(guesses: Sequence[int], wanted: Sequence[int]) -> tuple[float, float]:
    """Whether all tokens agree, and the share that does; position by position, at least one.

    Raises:
        ValueError: The two are not of one length, or empty: positions were mixed up.
    """
    if len(guesses) != len(wanted) or not wanted:
        raise ValueError(f"{len(guesses)} predicted tokens cannot be compared with {len(wanted)}")
    equal = sum(guess == token for guess, token in zip(guesses, wanted, strict=True))
    return float(equal == len(wanted)), equal / len(wanted)


def the_protocol(names: Sequence[str]) -> str:
    """The one protocol of a table.

    Raises:
        UnikeError: There are several: their numbers do not compare.
    """
    different = sorted(set(names))
    if len(different) != 1:
        raise UnikeError(f"one table cannot mix protocols ({', '.join(different)}); make a table of each")
    return different[0]
