"""What is asked about a case, and the texts that are read to find out: values, with no model in them.

A `Line` is a question with a text that may be its answer; `Lines` share a batch; `Guesses` are what a model predicts
along a line. `ReadCase` is a case with all of it, as the unedited model reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unike.backbones.forward.split import IGNORE, SplitState
from unike.data.queries import RELIABILITY, EditCase, Query, probe_kinds, telling


@dataclass(frozen=True)
class Line:
    """A question with a text that may be its answer, to be read teacher-forced.

    Args:
        query: The question, with the text as its target.
        tokens: The text's tokens, without the end.
        provable: Whether generating would begin at the same tokens: with some tokenizers the end of a prompt looks
            different when a text follows.
    """

    query: Query
    tokens: list[int]
    provable: bool


@dataclass(frozen=True)
class Guesses:
    """What a model predicts along a line.

    Args:
        ids: The most likely token for each token of the text and, where texts end with one, for the end.
        leads: By how much its logit leads the second best.
        ranks: The most likely ids at every position of the line, best first, if asked for.
        notes: What the method says about the line.
    """

    ids: list[int]
    leads: list[float]
    ranks: list[list[int]] | None
    notes: dict[str, float]


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines that share a batch.

    Args:
        lines: R of them.
        labels: ``[R, S]``, as in `unike.backbones.forward.split.Batch`, or from where the state begins.
        real: ``[R, S]`` bool, false at padding.
        state: Run to the lowest edited layer, or None where every reading starts from the beginning. Shortened where
            edits leave what comes before as it is.
        before: What the unedited model predicts along each line.
    """

    lines: list[Line]
    labels: Tensor
    real: Tensor
    state: SplitState | None
    before: list[Guesses]


@dataclass(frozen=True)
class Question:
    """One question of a case.

    Args:
        kind: Name of one of `probe_kinds`.
        query: With its gold answer, if there is one.
        before: The unedited model's greedy answer.
        gold: Where the line with the gold answer is, ``(batch, row)``, or None.
        own: Where the line with the answer before the edit is; None where it does not matter or is empty.
        edited: Where the line with the edit's own answer is; None where it is as quick to ask.
        known: Whether the unedited model answers it when it is told the fact in words; None where that was not asked.
    """

    kind: str
    query: Query
    before: str
    gold: tuple[int, int] | None = None
    own: tuple[int, int] | None = None
    edited: tuple[int, int] | None = None
    known: bool | None = None


TEXTS = ("own", "gold", "edited")
"""The texts that an answer may turn out to be, by their attributes of a `Question`."""


@dataclass(frozen=True, eq=False)
class ReadCase:
    """A case as the unedited model reads it.

    Args:
        case: The case.
        questions: The edited fact first.
        batches: The lines to replay.
    """

    case: EditCase
    questions: list[Question]
    batches: list[Lines]

    @property
    def nbytes(self) -> int:
        """Memory of the split states, in bytes."""
        return sum(batch.state.nbytes for batch in self.batches if batch.state is not None)


def questions(case: EditCase) -> list[tuple[str, Query]]:
    """Everything that is asked about a case: ``(kind, query)``, the edited fact first."""
    return [(RELIABILITY.name, case.edit), *((probe.kind, probe.query) for probe in case.probes)]


def told(case: EditCase) -> dict[Query, Query]:
    """Each question that has no say in the scope, to itself with the fact in words before it, without the picture."""
    apart = [query for kind, query in questions(case) if not probe_kinds()[kind].in_scope]
    return {query: telling(case.edit, query) for query in apart}


def image_name(image: Path | None, root: Path | None) -> str | None:
    """What a picture is called on every machine: its path below its data set's folder."""
    if image is not None and root is not None and image.is_relative_to(root):
        image = image.relative_to(root)
    return None if image is None else image.as_posix()


def text_tokens(labels: Tensor) -> list[list[int]]:
    """The tokens of each row's text; ``labels`` are ``[R, S]``, as in `Lines`."""
    return [row[row != IGNORE].tolist() for row in labels]


def guesses(
    logits: Tensor, lengths: list[int], ranks: Sequence[list[list[int]] | None], notes: Sequence[dict[str, float]]
) -> list[Guesses]:
    """What logits ``[n, V]`` predict, line by line.

    Args:
        logits: At the positions of the lines' texts, line after line.
        lengths: Tokens of each line's text.
        ranks: As in `Guesses`, of each line.
        notes: The same.
    """
    best = logits.float().topk(2)
    leads = best.values[:, 0] - best.values[:, 1]
    return [
        Guesses(ids.tolist(), lead.tolist(), rank, note)
        for ids, lead, rank, note in zip(
            best.indices[:, 0].split(lengths), leads.split(lengths), ranks, notes, strict=True
        )
    ]
