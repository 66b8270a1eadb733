"""Which questions a backbone is asked: those about a picture that share nothing with what is evaluated."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unike.core.errors import UnikeError
from unike.data.leaks import LEAKS, ImageHashes, LeakGuard, worded
from unike.data.matching import normalise
from unike.data.provenance import every_query
from unike.data.queries import EditCase, Query
from unike.data.sampling import evenly

TEXTS = 256
"""At most so many questions without a picture take part in the mean of attention inputs."""


@dataclass(frozen=True)
class Candidate:
    """A question with its true answer that the backbone may get wrong."""

    query: Query
    hashes: ImageHashes
    tag: str


def find_candidates(
    cases: Sequence[EditCase], guard: LeakGuard, tags: Mapping[str, str]
) -> tuple[list[Candidate], dict[str, int]]:
    """The edits of the cases that are about a picture and share nothing with what is evaluated.

    Returns:
        The candidates, each once, and for each reason how many are not among them.

    Raises:
        UnikeError: There is none.
    """
    candidates: dict[tuple[str, str, str], Candidate] = {}
    dropped: Counter[str] = Counter(dict.fromkeys(("no picture", *LEAKS, "repeated"), 0))
    for case in cases:
        if case.edit.image is None:
            dropped["no picture"] += 1
        elif reason := guard.leak(case.edit):
            dropped[reason] += 1
        else:
            candidate = Candidate(case.edit, guard.hashes[case.edit.image], tags.get(case.case_id, ""))
            same = (worded(case.edit.prompt), candidate.hashes.content, normalise(case.edit.target or ""))
            dropped["repeated"] += same in candidates
            candidates.setdefault(same, candidate)
    if not candidates:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        raise UnikeError(f"none of {len(cases)} cases can be learned from: {reasons}")
    return list(candidates.values()), dict(dropped)


def text_questions(cases: Sequence[EditCase], against: Sequence[EditCase]) -> list[str]:
    """What the cases ask without a picture, each question once, without those that ``against`` asks too."""
    protected = {worded(query.prompt) for query in every_query(against)}
    asked = {worded(query.prompt): query.prompt for query in every_query(cases) if query.image is None}
    prompts = [prompt for question, prompt in asked.items() if question not in protected]
    return [prompts[i] for i in evenly(len(prompts), TEXTS)]
