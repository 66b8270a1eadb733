"""Which edits of a stack are in force: of several about the very same question, the newest.

Two edits of one question that both acted would not give either answer, but a mixture. Nor do two of the same fact add
up: it counts once. Questions are the same if their words are, but for case and spaces, and their pictures, byte for
byte, whichever methods made the edits.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from unike.core.files import file_hash
from unike.data.queries import Query

if TYPE_CHECKING:
    from unike.edits.edit import Edit

E = TypeVar("E", bound="Edit")

Question = tuple[str, str]
"""The words, and the picture's content."""


def question_of(fact: Query) -> Question:
    """What an edit is about; a picture that is not there is known by its path."""
    words = " ".join(fact.prompt.casefold().split())
    if fact.image is None:
        return words, ""
    try:
        return words, file_hash(fact.image)
    except OSError:
        return words, str(fact.image.absolute())


def questions_of(facts: Iterable[Query]) -> tuple[Question, ...]:
    """What independent edits that were made in one pass are about, row by row."""
    return tuple(map(question_of, facts))


def in_force(edits: Sequence[E], newer: Sequence[Query] = ()) -> list[E]:
    """The edits of a stack without those that newer ones supersede, in their order.

    Args:
        edits: Oldest first. One of several independent facts is superseded by one about the same, row by row.
        newer: Facts of an edit that is still to come.
    """
    known = {questions_of(newer)} if newer else set()
    if not known and len({edit.questions for edit in edits}) == len(edits):
        return list(edits)
    kept: list[E] = []
    for edit in reversed(edits):
        about = edit.questions
        if about not in known:
            known.add(about)
            kept.append(edit)
    return kept[::-1]
