"""What things in a store are called, and what counts as the same."""

import getpass
import hashlib
import json
import re
from collections.abc import Sequence

from unike.core.errors import UnikeError
from unike.store.values import Stored

DEFAULT = "default"
"""The set that is meant where none is named."""

SET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

LONGEST = 4096
"""Characters of a reason, an author or a tag."""

MOST_TAGS = 100
"""Of an edit: who lists a set gets all of them."""

LONGEST_ID = 64
"""What is longer is the beginning of no id."""


def is_set(name: str) -> bool:
    """Whether a set may be called so."""
    return SET.fullmatch(name) is not None


def checked_set(name: str) -> str:
    """The name of a set.

    Raises:
        UnikeError: It could not be told apart in ``model@set:version``.
    """
    if not is_set(name):
        raise UnikeError(f"{name!r} is no name of a set; use up to 64 letters, digits, '-', '_', '.'")
    return name


def set_and_version(named: str) -> tuple[str, int | None]:
    """A set and perhaps one of its versions, ``tenant-a`` or ``tenant-a:7``.

    Raises:
        UnikeError: What stands behind the colon is no version.
    """
    name, colon, version = named.partition(":")
    if colon and not (version.isascii() and version.isdigit() and len(version) < 10):
        raise UnikeError(f"{version!r} is no version of the set {name!r}; write {name}:7, for example")
    return name, int(version) if colon else None


def checked_text(what: str, text: str, *, empty: bool = True) -> str:
    """A text that a person wrote, with no blanks around it.

    Raises:
        UnikeError: It is too long, holds what no database keeps, or is empty where it may not be.
    """
    found = text.strip()
    try:
        found.encode()
    except UnicodeEncodeError:
        raise UnikeError(f"the {what} {text!r} is not valid Unicode") from None
    if len(found) > LONGEST or "\0" in found:
        raise UnikeError(f"the {what} has more than {LONGEST:,} characters, or a null; shorten it")
    if not found and not empty:
        raise UnikeError(f"the {what} is empty")
    return found


def check_fact(prompt: str, target: str) -> None:
    """Refuse a fact that cannot be kept, before an edit of it is made.

    Raises:
        UnikeError: It holds a null.
    """
    for what, text in (("prompt", prompt), ("target", target)):
        if "\0" in text:
            raise UnikeError(f"the {what} {text!r} holds a null, which no database keeps")


def checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Tags, each once.

    Raises:
        UnikeError: One is empty or too long, or there are more than `MOST_TAGS`.
    """
    found = tuple(dict.fromkeys(checked_text("tag", tag, empty=False) for tag in tags))
    if len(found) > MOST_TAGS:
        raise UnikeError(f"an edit has at most {MOST_TAGS} tags, and not {len(found)}")
    return found


def is_start(name: str) -> bool:
    """Whether an id may begin so: it is written in `LONGEST_ID` letters and digits at most."""
    return name.isascii() and bool(name.strip()) and len(name) <= LONGEST_ID


def author_or_user(author: str | None) -> str:
    """Who does something; the user of this process if nobody is named."""
    if author is not None:
        return checked_text("author", author, empty=False)
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # in a container there may be no such user
        return "unknown"


def question_key(prompt: str, picture: str | None) -> tuple[str, str]:
    """What is the same for the same question, as in `unike.edits.conflicts`."""
    return " ".join(prompt.casefold().split()), picture or ""


def asks(stored: Stored) -> tuple[str, str, str]:
    """What is the same for edits of the same question of the same model."""
    return (*question_key(stored.prompt, stored.picture), stored.fingerprint)


def identity(*parts: object) -> str:
    """16 hex digits that are the same for the same parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
