"""What an export says beside the edited and the unedited model: what was kept, and what locality was lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unike.core.progress import Progress, silent
from unike.data.queries import Query
from unike.edits.edited import EditedModel
from unike.export.questions import KINDS, Asked, Kind

TOGETHER = 16
"""Questions that are asked in one pass."""


@dataclass(frozen=True)
class Row:
    """One question with three answers.

    Args:
        asked: The question.
        unedited: Of the model as it was.
        edited: Of the model under the edits, in unike.
        exported: Of what left unike.
    """

    asked: Asked
    unedited: str
    edited: str
    exported: str

    def is_right(self, answer: str) -> bool:
        """Whether an answer is the target or, where the edit has no business, the unedited one."""
        return self.asked.query.accepts(answer) if self.asked.kind.about else answer == self.unedited


@dataclass(frozen=True)
class Score:
    """Of one kind of question.

    Args:
        kind: The kind.
        asked: How many.
        edited: The share that the edited model has right.
        exported: The share that the export has.
        same: The share to which both say the same.
    """

    kind: Kind
    asked: int
    edited: float
    exported: float
    same: float


def answers(model: EditedModel, asked: Sequence[Asked], room: int, what: str, progress: Progress = silent) -> list[str]:
    """Greedy answers, in the order of the questions; those of like length share a pass.

    Args:
        model: Who is asked.
        asked: The questions.
        room: The longest answer, in tokens.
        what: Told to ``progress``.
        progress: Told how many are answered.
    """
    found: dict[Query, str] = {}
    wanted = sorted(
        {each.query.question for each in asked}, key=lambda query: (query.image is None, len(query.prompt), str(query))
    )
    for start in range(0, len(wanted), TOGETHER):
        progress(what, start, len(wanted))
        part = wanted[start : start + TOGETHER]
        found |= zip(part, model.generate(part, max_new_tokens=room), strict=True)
    progress(what, len(wanted), len(wanted))
    return [found[each.query.question] for each in asked]


def scores_of(rows: Sequence[Row]) -> list[Score]:
    """Of each kind that was asked."""
    found = []
    for kind in KINDS:
        own = [row for row in rows if row.asked.kind is kind]
        if own:
            shares = [
                sum(row.is_right(row.edited) for row in own),
                sum(row.is_right(row.exported) for row in own),
                sum(row.edited == row.exported for row in own),
            ]
            found.append(Score(kind, len(own), *(share / len(own) for share in shares)))
    return found


def as_json(scores: Sequence[Score], rows: Sequence[Row]) -> dict[str, Any]:
    """For ``export.json``."""
    return {
        "scores": {
            score.kind.name: {
                "asked": score.asked,
                "wants": "the target" if score.kind.about else "the unedited answer",
                "edited_model": round(score.edited, 4),
                "exported": round(score.exported, 4),
                "same_answer": round(score.same, 4),
            }
            for score in scores
        },
        "answers": [
            {
                "kind": row.asked.kind.name,
                "prompt": row.asked.query.prompt,
                "picture": row.asked.query.image and row.asked.query.image.name,
                "unedited": row.unedited,
                "edited": row.edited,
                "exported": row.exported,
            }
            for row in rows
        ],
    }
