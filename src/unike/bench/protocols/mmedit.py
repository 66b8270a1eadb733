"""MMEdit's own numbers (arXiv 2310.08475), to be compared with published tables; locality counts the prompt as well."""

from collections.abc import Sequence
from typing import ClassVar

from unike.bench.protocols.base import Protocol, Response, Scores, agreement

TOP_TEXT, TOP_IMAGE = 1, 10
"""Ranks that are compared for questions without and with an image."""


class MMEdit(Protocol):
    """``mmedit/token`` where the target is wanted, ``top1`` or ``top10`` where the answer should be unchanged."""

    name: ClassVar[str] = "mmedit"
    order: ClassVar[int] = 2
    views: ClassVar = {"mmedit": ("token", "top1", "top10")}
    reads_ranks: ClassVar[bool] = True

    def score(self, response: Response) -> Scores:
        """The share of gold tokens that are predicted; or of the best ids that are as before, rank by rank."""
        gold = response.at_gold
        if response.kind.expects == "target":
            return {"mmedit/token": agreement(response.along_gold.after, response.along_gold.tokens)[1]}
        ranks = TOP_IMAGE if response.has_image else TOP_TEXT
        if gold is None or gold.ranks_before is None or gold.ranks_after is None:
            # A method that rewrites the prompt has other positions; lining them up from the right compares nonsense.
            return {f"mmedit/top{ranks}": None}
        return {f"mmedit/top{ranks}": unchanged(gold.ranks_before, gold.ranks_after, ranks)}


def unchanged(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]], ranks: int) -> float:
    """The share of the most likely ids that agree, rank by rank.

    Args:
        before: For every position of prompt and answer, its most likely ids, best first.
        after: The same under the edits.
        ranks: How many to compare at each position.
    """
    flat = [[token for ids in side for token in ids[:ranks]] for side in (after, before)]
    return agreement(*flat)[1]
