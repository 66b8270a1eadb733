"""What a program gives in the place of questions and options: taken as it is meant, or refused in one line."""

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from unike.core.errors import UnikeError
from unike.data.queries import Query


def given_queries(queries: Any, what: str = "query") -> list[Query]:
    """Queries, of any iterable or alone.

    Args:
        queries: What was given.
        what: What one of them is called in messages.

    Raises:
        UnikeError: It is something else, or a text that is no Unicode.
    """
    found = given_list(queries, Query, f"a {what} is a unike.Query, not {{}}; give Query(prompt, image, target)")
    for query in found:
        for text in (query.prompt, query.target, query.system):
            check_unicode(text)
        for turn in query.history:
            check_unicode(turn.question)
            check_unicode(turn.answer)
    return found


def given_list(given: Any, kind: type, wrong: str, no_list: str = "") -> list[Any]:
    """Things of a kind, of any iterable or alone.

    Args:
        given: What was given.
        kind: Theirs.
        wrong: The message for something else, with a place for that.
        no_list: The message where nothing can be taken from it; ``wrong`` if empty.

    Raises:
        UnikeError: It is something else.
    """
    if isinstance(given, kind):
        return [given]
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise UnikeError((no_list or wrong).format(shown(given)))
    found = list(given)
    wrong_types = {each for each in set(map(type, found)) if not issubclass(each, kind)}
    if wrong_types:
        raise UnikeError(wrong.format(shown(next(each for each in found if type(each) in wrong_types))))
    return found


def check_unicode(text: str | None) -> None:
    """Refuse half a character, which no tokenizer reads.

    Raises:
        UnikeError: With the text.
    """
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise UnikeError(f"{text!r} is not valid Unicode: {half} is half a character; write the whole one") from None


LEAST = {"max_new_tokens": 1, "num_beams": 1, "min_new_tokens": 0, "top_k": 0, "no_repeat_ngram_size": 0}
"""Whole numbers of a generation, and the smallest of each."""

ALWAYS = ("max_new_tokens", "num_beams")
"""What cannot be left open."""

MOST = {"temperature": float("inf"), "repetition_penalty": float("inf"), "top_p": 1, "typical_p": 1}
"""Numbers of a generation that are above 0, and the largest of each."""


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a generation as plain numbers, whatever library's they are.

    Raises:
        UnikeError: One makes no sense; names the option.
    """
    return {name: _plain(name, value) for name, value in options.items()}


def _plain(name: str, value: Any) -> Any:
    if name not in {*LEAST, *MOST} or (value is None and name not in ALWAYS):
        return value
    if name in LEAST:
        if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= LEAST[name]:
            return int(value)
        raise UnikeError(f"{name} is {shown(value)}; it is a whole number from {LEAST[name]} on")
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if math.isfinite(number) and 0 < number <= MOST[name]:
        return number
    raise UnikeError(f"{name} is {shown(value)}; it is a number above 0{'' if MOST[name] > 1 else ', at most 1'}")


def shown(value: Any) -> str:
    """A value in a message: what it is, and the beginning of what it says."""
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text[:40]}{'...' if len(text) > 40 else ''}"
