"""What was measured of a case: every question before and after its edit, with scores."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from unike.core.schema import STRICT

Score = Annotated[float, Field(ge=0, le=1)]

READ: ConfigDict = {**STRICT, "extra": "forbid"}
"""How lines of results are read."""


@dataclass(frozen=True)
class Asked:
    """One question before and after an edit, with what the answer is worth.

    Args:
        kind: Name of one of `unike.data.queries.probe_kinds`.
        prompt: The question.
        image: The picture's path below its data set's folder, or None.
        target: The gold answer, or None.
        before: The greedy answer before the first edit.
        after: The greedy answer under the edits.
        scores: ``"protocol/scorer"`` to a value from 0 to 1; None where the method leaves it undefined.
        notes: What the method says about the question, see `Prefill.note`.
        also: Further answers that are as right as the target.
        hop: Of the `Probe`.
        known: Of what follows from the fact: whether the unedited model says it when it is told the fact in words,
            without the picture. None of other questions, and in results of older versions.
    """

    kind: str
    prompt: str
    image: str | None
    target: str | None
    before: str
    after: str
    scores: dict[str, Score | None]
    notes: dict[str, float] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    hop: int | None = None
    known: bool | None = None

    __pydantic_config__: ClassVar[ConfigDict] = READ


@dataclass(frozen=True)
class CaseResult:
    """What one edit did to the questions that test it.

    Args:
        case_id: Of the `EditCase`.
        domain: Of the `EditCase`.
        asked: The edited question first, then the probes.
        edit_seconds: Making the edit took so long; edits made in one pass share their time evenly.
        sequence: Number of the sequence it was edited in, None in one-step editing.
        position: The how-manieth edit of its sequence, from 0.
        when: ``"end"`` (after the last edit of the sequence), ``"own"`` (right after this), ``"at-10"`` (after ten).
    """

    case_id: str
    domain: str
    asked: Annotated[tuple[Asked, ...], Field(min_length=1)]
    edit_seconds: Annotated[float, Field(ge=0)]
    sequence: int | None = None
    position: Annotated[int, Field(ge=0)] = 0
    when: str = "end"

    __pydantic_config__: ClassVar[ConfigDict] = READ
