"""What is said of an edit as a whole, from the lines of results: whether all of it is right, and what is garbled.

``scope``: every question that tests it is right, what should change and what should not. What follows from the fact
(portability) can only be asked where it is known, and has no say. ``garbled``: of its answers, the share that are
neither the unedited one nor hold the edit's target whole, nor are right: mixtures, and text that breaks off.
"""

from collections.abc import Iterator
from functools import cache

from unike.bench.outcome import Asked, CaseResult
from unike.data.matching import exact_match, holds
from unike.data.queries import probe_kinds

SCOPE, GARBLED = "scope", "garbled"

WHAT_IS_SAID = "strict/exact"
"""Under which score answers themselves are judged."""


@cache
def metric_heads() -> dict[str, str]:
    """Every metric and the head of its column, in the order of tables: `SCOPE`, the kinds of questions, `GARBLED`."""
    return {SCOPE: "Scope", **{name: kind.short for name, kind in probe_kinds().items()}, GARBLED: "Garbled"}


def verdicts(case: CaseResult) -> Iterator[tuple[str, str, float, int]]:
    """``"protocol/scorer"``, metric, sum and number of the values of a case; without a value, a number of 0.

    A scorer that does not say of every question whether it is right gives no `SCOPE`.
    """
    asked = [each for each in case.asked if probe_kinds()[each.kind].in_scope]
    for key in asked[0].scores if asked else ():
        if all(key in each.scores for each in asked):
            values = [value for each in asked if (value := each.scores[key]) is not None]
            defined = len(values) == len(asked)
            yield key, SCOPE, float(defined and min(values) == 1), int(defined)
    if any(WHAT_IS_SAID in each.scores for each in case.asked):
        edit = case.asked[0]
        yield WHAT_IS_SAID, GARBLED, float(sum(_is_garbled(each, edit) for each in case.asked)), len(case.asked)


def _is_garbled(asked: Asked, edit: Asked) -> bool:
    """Whether an answer is the unedited one, holds a target of the edit, or is right."""
    if asked.after == asked.before or holds(asked.after, edit.target or "", *edit.also):
        return False
    return not exact_match(asked.after, asked.target or "", *asked.also)
