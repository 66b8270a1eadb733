"""What a backbone answers wrongly: triplets of a question, its true answer and the backbone's own."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.data.matching import ARTICLES, normalise
from unike.data.queries import Query
from unike.data.sampling import evenly, far_apart
from unike.editors.unike.knowledge import Triplet
from unike.editors.unike.prepare.candidates import Candidate
from unike.editors.unike.prepare.work import Work


@dataclass(frozen=True)
class Mistake:
    """A candidate that is answered wrongly."""

    triplet: Triplet
    image: Path

    def answered(self, *, true: bool) -> Query:
        """Its question with the true answer, or with the false one."""
        return Query(self.triplet.prompt, self.image, self.triplet.positive if true else self.triplet.negative)


def collect(work: Work, candidates: Sequence[Candidate]) -> tuple[list[Mistake], dict[str, int]]:
    """Ask the unedited backbone, greedily, and keep what it answers wrongly.

    Returns:
        The mistakes in the order of the candidates, and how many answers there were of each verdict (see `judge`).

    Raises:
        UnikeError: There is no mistake to learn from.
    """
    backbone, config = work.backbone, work.config
    known = work.answers()
    batches = [candidates[start : start + config.rows] for start in range(0, len(candidates), config.rows)]
    mistakes: dict[int, list[Mistake]] = {}
    counts: Counter[str] = Counter()
    for done, index in enumerate(far_apart(len(batches)), 1):
        answers = ask(work, batches[index], known)
        mistakes[index] = []
        for answer, candidate in zip(answers, batches[index], strict=True):
            wanted = candidate.query
            verdict = (
                "right"
                if wanted.accepts(answer)
                else judge(backbone, answer, wanted.target or "", config.max_new_tokens)
            )
            counts[verdict] += 1
            if verdict == "wrong":
                mistakes[index].append(as_mistake(candidate, answer))
        work.progress("asking", done, len(batches))
        if config.limit is not None and counts["wrong"] >= config.limit:
            break
    in_order = [mistake for index in sorted(mistakes) for mistake in mistakes[index]]
    if not in_order:
        raise UnikeError(f"{backbone.source} has no clear mistake among {counts.total()} answers; there is no triplet")
    kept = [in_order[i] for i in evenly(len(in_order), config.limit)]
    return kept, {"asked": counts.total(), **counts, "beyond the limit": len(in_order) - len(kept)}


def ask(work: Work, batch: Sequence[Candidate], known: dict[str, str]) -> list[str]:
    """Greedy answers to a batch, which is asked as a whole: how long the others are may tip the last bit of a row.

    Args:
        work: Whose backbone is asked.
        batch: What it is asked.
        known: Answers of before, by their key; new ones are added.
    """
    longest = work.config.max_new_tokens
    keys = [work.key([candidate.query.prompt, candidate.hashes.content, longest]) for candidate in batch]
    if not known.keys() >= set(keys):
        said = work.backbone.generate([candidate.query for candidate in batch], max_new_tokens=longest)
        answers = dict(zip(keys, said, strict=True))
        work.remember(answers)
        known.update(answers)
    return [known[key] for key in keys]


def kept_first(mistakes: Sequence[Mistake], keep: int | None) -> list[Mistake]:
    """The mistakes whose states are stored, evenly spread, and then those that are only learned from."""
    kept = evenly(len(mistakes), keep)
    return [mistakes[i] for i in kept] + [mistakes[i] for i in sorted(set(range(len(mistakes))) - set(kept))]


def judge(backbone: Backbone, answer: str, target: str, max_new_tokens: int) -> str:
    """What an answer is worth as ``A_neg``.

    Returns:
        ``"right"``, ``"empty"``, ``"truncated"``; ``"substring"`` if one of answer and target holds the other,
        ``"reordered"`` if they have the same words: both may mean the same; else ``"wrong"``.
    """
    said, wanted = normalise(answer), normalise(target)
    if said == wanted:
        return "right"
    if said in ARTICLES or not re.search(r"\w", said):
        return "empty"
    if len(backbone.tokenizer(" " + answer, add_special_tokens=False)["input_ids"]) >= max_new_tokens:
        return "truncated"
    if said in wanted or wanted in said:
        return "substring"
    return "reordered" if sorted(said.split()) == sorted(wanted.split()) else "wrong"


def as_mistake(candidate: Candidate, answer: str) -> Mistake:
    """Answers lose what they end with: a full stop behind all true answers alone would tell them from false ones."""
    assert candidate.query.image is not None and candidate.query.target is not None
    positive, negative = (text.strip().rstrip(".,;:!? ") for text in (candidate.query.target, answer))
    triplet = Triplet(candidate.query.prompt, candidate.hashes, positive, negative, candidate.tag)
    return Mistake(triplet, candidate.query.image)
