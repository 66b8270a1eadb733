"""The same question in other words, to try an edit with before it goes live.

Questions are of few kinds. If one lies next to wordings of PocketEdit's train split, behind the network that tells what
a question asks, others of these are the same question; any question is the same behind a word or two.
"""

from functools import cache

from torch import Tensor

from unike.data.datasets.pocket import read
from unike.editors.unike.words import read_words

ALIKE = 0.75
"""How near a wording has to be, as a cosine, for its kind to be the question's."""

FRAMES = (
    "Please tell me: {}",
    "{} Answer briefly.",
    "Question: {}",
    "I would like to know this. {}",
    "Can you help me? {}",
    "Look closely. {}",
)
"""What may stand around any question: its own words are kept, so that it means the same in any case."""


@cache
def wordings() -> tuple[list[str], list[str], Tensor]:
    """Kinds of the train split's wordings, the wordings, and what they ask, ``[n, D]``."""
    rows = [row for row in read("questions") if row["split"] == "train" and "{" not in row["wording"]]
    texts = [row["wording"] for row in rows]
    return [row["kind"] for row in rows], texts, read_words(texts).asked


def rephrased(prompt: str, count: int = 4) -> list[str]:
    """A question in other words.

    Args:
        prompt: The question.
        count: So many.
    """
    kinds, texts, asked = wordings()
    like = asked @ read_words([prompt]).asked[0]
    nearest = int(like.argmax())
    same = [text for kind, text in zip(kinds, texts, strict=True) if kind == kinds[nearest]]
    found = [text for text in same if text.casefold() != prompt.casefold()] if like[nearest] >= ALIKE else []
    around = [each.format(prompt) for each in FRAMES]
    return [text for pair in zip(found, around, strict=False) for text in pair][:count] or around[:count]
