"""What a model would say next, shown the answer it is judged by token by token; what most published tables hold."""

from collections.abc import Sequence
from typing import ClassVar

from unike.bench.protocols.base import Protocol, Response, Scores, agreement


class TeacherForced(Protocol):
    """``teacher_forced/em`` and ``token``; of what should be unchanged, ``gold_em`` and ``gold_token`` too."""

    name: ClassVar[str] = "teacher_forced"
    order: ClassVar[int] = 1
    views: ClassVar = {"teacher_forced/em": ("em",), "teacher_forced/token": ("token",)}

    def score(self, response: Response) -> Scores:
        """At the gold tokens; or before against after, at the answer before the edit and at the gold answer."""
        if response.kind.expects == "target":
            return scores(response.along_gold.after, response.along_gold.tokens)
        own, gold = response.at_own, response.at_gold
        # An empty answer has no positions of its own; what is left to ask is whether it is still empty.
        found = scores([0], [int(response.after != "")]) if own is None else scores(own.after, own.before)
        if gold is None:
            return found | {"teacher_forced/gold_em": None, "teacher_forced/gold_token": None}
        return found | scores(gold.after, gold.before, at="gold_")


def scores(guesses: Sequence[int], wanted: Sequence[int], *, at: str = "") -> Scores:
    """``em`` and ``token`` of one answer.

    Args:
        guesses: Argmax under the edits at the answer's positions, given the answer's tokens so far.
        wanted: The gold tokens, or the argmax before the edit at the same positions.
        at: ``"gold_"`` for what should be unchanged, at the gold answer's positions.
    """
    every, share = agreement(guesses, wanted)
    return {f"teacher_forced/{at}em": every, f"teacher_forced/{at}token": share}
