"""When two answers are the same."""

import re

ARTICLES = frozenset({"a", "an", "the"})


def normalise(answer: str) -> str:
    """Lower case, without articles and punctuation, single spaces.

    >>> normalise("The Grand-Piano.")
    'grand piano'
    """
    words = re.sub(r"[\W_]+", " ", answer.casefold()).split()
    return " ".join(word for word in words if word not in ARTICLES)


def exact_match(answer: str, target: str) -> bool:
    """Whether two answers are the same once normalised; two empty ones are not."""
    return normalise(answer) == normalise(target) != ""
