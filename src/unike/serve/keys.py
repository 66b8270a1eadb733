"""API keys: who may ask, and who may also change edits; under every set, or under those that stand behind a key."""

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unike.core.errors import UnikeError
from unike.core.files import read_file
from unike.core.folders import reason
from unike.store.names import is_set

SHORTEST = 16
"""Characters of a key; a shorter one can be guessed."""

Role = Literal["user", "admin"]


@dataclass(frozen=True)
class Holder:
    """Who holds a key.

    Args:
        role: What it is for.
        sets: Under which it is good; None for all there are.
    """

    role: Role
    sets: frozenset[str] | None = None

    def sees(self, set: str) -> bool:
        """Whether a set is there for whoever holds it."""
        return self.sets is None or set in self.sets


ANYONE = Holder("admin")
"""Whoever asks where no key is needed."""


@dataclass(frozen=True)
class Keys:
    """The keys of a service, as digests.

    Args:
        users: Of those who may ask and read.
        admins: Of those who may also add, revoke and restore edits; what is among both is one of these.
        sets: Of keys that are good for some sets alone: which.
    """

    users: tuple[bytes, ...] = ()
    admins: tuple[bytes, ...] = ()
    sets: Mapping[bytes, frozenset[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether keys are asked for at all."""
        return bool(self.users or self.admins)

    def holder(self, authorization: str | None) -> Holder | None:
        """Who sends a header ``Authorization: Bearer KEY``; None for nobody who is known.

        Every key is compared, each in constant time, so that the time it takes tells nothing.
        """
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        user, admin = ([hmac.compare_digest(given, known) for known in keys] for keys in (self.users, self.admins))
        if scheme.lower() != "bearer":
            return None
        if not any(admin) and not any(user):
            return None
        return Holder("admin" if any(admin) else "user", self.sets.get(given))


def read_keys(key_file: Path | None = None, admin_key_file: Path | None = None, environment: bool = True) -> Keys:
    """The keys of files, one a line, and of ``UNIKE_API_KEYS`` and ``UNIKE_ADMIN_KEYS``, with commas between.

    Behind a key may stand the names of the sets that it is good for, with blanks between.

    Raises:
        UnikeError: A file cannot be read or has no key, a key is too short, or what stands behind it is no set.
    """
    found: dict[str, dict[bytes, frozenset[str] | None]] = {}
    for role, file, variable in (
        ("user", key_file, "UNIKE_API_KEYS"),
        ("admin", admin_key_file, "UNIKE_ADMIN_KEYS"),
    ):
        keys = [] if file is None else _checked(_lines(file), str(file))
        if file is not None and not keys:
            raise UnikeError(f"there is no key in {file}; write one in a line")
        if environment:
            keys += _checked(filter(None, map(str.strip, os.environ.get(variable, "").split(","))), variable)
        found[role] = _joined(keys)
    tied = {key: sets for key, sets in (found["user"] | found["admin"]).items() if sets is not None}
    return Keys(tuple(found["user"]), tuple(found["admin"]), tied)


def _lines(file: Path) -> list[str]:
    try:
        text = read_file(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UnikeError(f"cannot read the keys in {file}: {reason(error)}") from None
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _checked(lines: Iterable[str], where: str) -> list[tuple[str, list[str]]]:
    """Keys, each with the sets behind it."""
    found = []
    for line in lines:
        key, *sets = line.split()
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable():
            raise UnikeError(
                f"a key in {where} has fewer than {SHORTEST} characters, or others than ASCII; "
                "make one with: openssl rand -hex 24"
            )
        if not all(map(is_set, sets)):  # which it is, is not said: it may be half of a key
            raise UnikeError(f"what stands behind a key in {where} is no name of a set; write KEY, or KEY SET SET")
        found.append((key, sets))
    return found


def _joined(keys: Iterable[tuple[str, list[str]]]) -> dict[bytes, frozenset[str] | None]:
    """The sets of each key; one that stands there without any once is good for all."""
    found: dict[bytes, frozenset[str] | None] = {}
    for key, sets in keys:
        before = found.get(_digest(key), frozenset())
        found[_digest(key)] = None if before is None or not sets else before | frozenset(sets)
    return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
