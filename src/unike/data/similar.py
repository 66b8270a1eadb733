"""Which question of a benchmark is most like another: words alone, so that no model has a say."""

import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from unike.data.matching import normalise
from unike.data.queries import EditCase, Probe, Query

WORD = re.compile(r"\w+")


def with_near(cases: Sequence[EditCase]) -> list[EditCase]:
    """Cases with one more probe each: the most similar question that another case edits, as `near_locality`.

    It is about another picture and has other answers. The same words are best, then the largest share of words in
    common; of equals the first after the case, coming round at the end, so that not all ask the same.

    Args:
        cases: Of a split. Those that have such a probe, or a question with which no other has a word in common, stay.
    """
    neighbours = _Neighbours([case.edit for case in cases])
    found = []
    for number, case in enumerate(cases):
        near = None if any(probe.kind == "near_locality" for probe in case.probes) else neighbours.nearest(number)
        found.append(case if near is None else replace(case, probes=(*case.probes, Probe("near_locality", near))))
    return found


class _Neighbours:
    """Questions by their words, pictures and answers."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self.queries = queries
        self.words = [frozenset(WORD.findall(query.prompt.casefold())) for query in queries]
        self.counts = np.array([len(words) for words in self.words])
        self.holding = _holders(self.words)
        self.alike = [(query.image, *map(normalise, (query.target or "", *query.also))) for query in queries]
        self.sharing = _holders(self.alike)

    def nearest(self, number: int) -> Query | None:
        """The question with the largest share of words in common; the first after this one, of equals."""
        if not self.words[number]:
            return None
        holders = np.concatenate([self.holding[word] for word in self.words[number]])
        common = np.bincount(holders, minlength=len(self.queries))
        shares = common / (self.counts + self.counts[number] - common)
        for each in self.alike[number]:
            shares[self.sharing[each]] = 0
        best = (int(np.roll(shares, -number).argmax()) + number) % len(self.queries)
        return self.queries[best] if shares[best] > 0 else None


def _holders(groups: Sequence[Collection[Hashable]]) -> dict[Hashable, NDArray[np.intp]]:
    """Each member of any group, and the numbers of the groups that it is in."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        for member in dict.fromkeys(group):
            found[member].append(number)
    return {member: np.array(numbers) for member, numbers in found.items()}
