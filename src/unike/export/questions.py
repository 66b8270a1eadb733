"""What an export is taught with, and what it is asked before it is done; both have but the edits' own questions.

Beside its own question an edit's is asked in other frames, about other pictures, and its picture is asked about
otherwise: there the edited model says where the edit ends. What has nothing to do with it are the anchors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unike.data.queries import Query
from unike.editors.common.rephrasings import FRAMES


@dataclass(frozen=True)
class Kind:
    """A kind of question.

    Args:
        name: In ``export.json``.
        says: For people.
        about: Whether it is about the fact, so that the target is wanted; the unedited answer is elsewhere.
    """

    name: str
    says: str
    about: bool


OWN = Kind("own", "the edit's own question", True)
REWORDED = Kind("reworded", "the same in other words", True)
OTHER_PICTURES = Kind("other_pictures", "the same about other pictures", False)
OTHER_QUESTIONS = Kind("other_questions", "other things about its picture", False)
UNRELATED = Kind("unrelated", "what is unrelated", False)
KINDS = (OWN, REWORDED, OTHER_PICTURES, OTHER_QUESTIONS, UNRELATED)

HELD_FRAMES = ("Could you tell me: {}", "Here is what I want to ask. {}", "{} Please be brief.", "One more thing: {}")

HELD_OUT = 4
"""Every fourth anchor is not learned from."""

NEAR = 12
"""So many other pictures, and as many other questions, for each edit."""


@dataclass(frozen=True)
class Asked:
    """One question.

    Args:
        kind: Of `KINDS`.
        query: With the target, if it is about the fact.
    """

    kind: Kind
    query: Query


def lessons(facts: Sequence[Query], anchors: Sequence[Query]) -> list[Asked]:
    """What is learned from."""
    return _asked(facts, [each for number, each in enumerate(anchors) if number % HELD_OUT], FRAMES)


def held_out(facts: Sequence[Query], anchors: Sequence[Query]) -> list[Asked]:
    """What is asked in the end; nothing of it was learned from, but for the edits' own questions."""
    learned = {each.query for each in lessons(facts, anchors)}
    found = _asked(facts, anchors[::HELD_OUT], HELD_FRAMES)
    return [each for each in found if each.kind is OWN or each.query not in learned]


def _asked(facts: Sequence[Query], anchors: Sequence[Query], frames: Sequence[str]) -> list[Asked]:
    found = [Asked(OWN, fact) for fact in facts]
    found += [Asked(REWORDED, replace(fact, prompt=frame.format(fact.prompt))) for fact in facts for frame in frames]
    pictures = list(dict.fromkeys(query.image for query in anchors if query.image is not None))
    prompts = list(dict.fromkeys(query.prompt for query in anchors if query.image is not None))
    for fact in facts:
        if fact.image is not None:
            found += _near(fact, pictures, prompts)
    found += [Asked(UNRELATED, query.question) for query in anchors]
    own = {fact.question for fact in facts}
    return [each for each in dict.fromkeys(found) if each.kind.about or each.query.question not in own]


def _near(fact: Query, pictures: Sequence[Path], prompts: Sequence[str]) -> list[Asked]:
    others = [Asked(OTHER_PICTURES, Query(fact.prompt, picture)) for picture in pictures[:NEAR]]
    return others + [Asked(OTHER_QUESTIONS, Query(prompt, fact.image)) for prompt in prompts[:NEAR]]
