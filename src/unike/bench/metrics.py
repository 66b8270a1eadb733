"""When an answer counts, under three protocols that are never mixed. Pure functions of strings and token ids.

==================  ========================================================  =====================================
protocol            an edit (reliability, generality, portability)            the rest (locality, specificity)
==================  ========================================================  =====================================
``strict``          greedy answer, normalised exact match (``exact``)         the same answer as before (``exact``)
``teacher_forced``  argmax at the gold tokens: all (``em``), share            argmax before and after agree at the
                    (``token``)                                               model's own answer before the edit
                                                                              (``em``, ``token``), and at the gold
                                                                              answer (``gold_em``, ``gold_token``)
``mmedit``          share of gold tokens (``token``)                          top-1 (text, ``top1``) or top-10 ids
                                                                              (image, ``top10``), rank by rank, at
                                                                              every position of prompt and answer
==================  ========================================================  =====================================

``strict`` looks at what a model really says; under the other two it is shown the answer it is judged by, token by
token. The token that ends an answer belongs to the answer under ``strict`` alone.
"""

from collections.abc import Sequence

from unike.core.errors import UnikeError
from unike.data.matching import exact_match

PROTOCOLS = ("strict", "teacher_forced", "mmedit")

UNCHANGED = frozenset({"t_locality", "m_locality", "specificity"})
"""Kinds of questions whose answer an edit should leave alone; of all others the gold answer is wanted."""

METRICS = (
    "reliability",
    "t_generality",
    "m_generality",
    "t_locality",
    "m_locality",
    "portability",
    "specificity",
)
"""Kinds of questions in the order of tables."""

Scores = dict[str, float | None]
"""``"protocol/scorer"`` to a value from 0 to 1, or None where the protocol is not defined."""


def strict(kind: str, *, before: str, after: str, target: str | None) -> Scores:
    """``strict/exact``: the gold answer where the edit should show, the old answer where it should not.

    Args:
        kind: One of `METRICS`.
        before: Greedy answer before the first edit.
        after: Greedy answer under the edits.
        target: The gold answer.
    """
    right = after == before if kind in UNCHANGED else exact_match(after, target or "")
    return {"strict/exact": float(right)}


def agreement(guesses: Sequence[int], wanted: Sequence[int]) -> tuple[float, float]:
    """Whether all tokens agree, and the share that does; position by position, at least one.

    Raises:
        ValueError: The two are not of one length, or empty: positions were mixed up.
    """
    if len(guesses) != len(wanted) or not wanted:
        raise ValueError(f"{len(guesses)} predicted tokens cannot be compared with {len(wanted)}")
    equal = sum(guess == token for guess, token in zip(guesses, wanted, strict=True))
    return float(equal == len(wanted)), equal / len(wanted)


def teacher_forced(guesses: Sequence[int], wanted: Sequence[int], *, at: str = "") -> Scores:
    """``teacher_forced/em`` and ``teacher_forced/token`` of one answer.

    Args:
        guesses: Argmax under the edits at the answer's positions, given the answer's tokens so far.
        wanted: The gold tokens; for locality the argmax before the edit at the same positions.
        at: ``"gold_"`` for locality at the gold answer's positions.
    """
    every, share = agreement(guesses, wanted)
    return {f"teacher_forced/{at}em": every, f"teacher_forced/{at}token": share}


def mmedit_edit(guesses: Sequence[int], gold: Sequence[int]) -> Scores:
    """``mmedit/token``: the share of gold tokens that are predicted, teacher-forced."""
    return {"mmedit/token": agreement(guesses, gold)[1]}


def mmedit_locality(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> Scores:
    """``mmedit/top1`` or ``mmedit/top10``, after the number of ids: the share that agrees, rank by rank.

    Args:
        before: For every position of prompt and answer, its most likely ids, best first.
        after: The same under the edits.
    """
    ranks = len(before[0])
    flat = [[token for ids in side for token in ids] for side in (after, before)]
    return {f"mmedit/top{ranks}": agreement(*flat)[1]}


def the_protocol(protocols: Sequence[str]) -> str:
    """The one protocol of a table.

    Raises:
        UnikeError: There are several: their numbers do not compare.
    """
    different = sorted(set(protocols))
    if len(different) != 1:
        raise UnikeError(f"one table cannot mix protocols ({', '.join(different)}); make a table of each")
    return different[0]
