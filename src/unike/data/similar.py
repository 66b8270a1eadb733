"""Which question of a benchmark is most like another: words alone, so that no model has a say."""

import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from unike.data.matching import normalise
from unike.data.queries import EditCase, Probe, Query

WORD = re.compile(r"\w+")

ENOUGH = 200
"""Among so many cases that share the rarest words with a question, the one with most words in common is looked for."""


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
    def __init__(self, queries: Sequence[Query]) -> None:
        self.queries = queries
        self.words = [frozenset(WORD.findall(query.prompt.casefold())) for query in queries]
        self.right = [frozenset(map(normalise, (query.target or "", *query.also))) for query in queries]
        self.asking: dict[frozenset[str], list[int]] = defaultdict(list)
        self.holding: dict[str, list[int]] = defaultdict(list)
        for number, words in enumerate(self.words):
            self.asking[words].append(number)
            for word in words:
                self.holding[word].append(number)

    def nearest(self, number: int) -> Query | None:
        words, same = self.words[number], self.asking[self.words[number]]
        at = bisect(same, number)
        for other in (*same[at:], *same[:at]):
            if self._another(number, other):
                return self.queries[other]
        others: set[int] = set()
        for word in sorted(words, key=lambda each: (len(self.holding[each]), each)):
            others |= {other for other in self.holding[word] if self._another(number, other)}
            if len(others) >= ENOUGH:
                break

        def rank(other: int) -> tuple[float, int]:
            shared = len(words & self.words[other]) / len(words | self.words[other])
            return -shared, (other - number) % len(self.queries)

        return self.queries[min(others, key=rank)] if others else None

    def _another(self, number: int, other: int) -> bool:
        """Whether it is about another picture, and has no right answer in common."""
        pictures = self.queries[number].image, self.queries[other].image
        return pictures[0] != pictures[1] and self.right[number].isdisjoint(self.right[other])
