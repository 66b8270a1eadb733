"""API keys: who may ask, and who may also change edits."""

import hashlib
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unike.core.errors import UnikeError
from unike.core.files import read_file
from unike.core.folders import reason

SHORTEST = 16
"""Characters of a key; a shorter one can be guessed."""

Role = Literal["user", "admin"]


@dataclass(frozen=True)
class Keys:
    """The keys of a service, as digests.

    Args:
        users: Of those who may ask and read.
        admins: Of those who may also add, revoke and restore edits.
    """

    users: tuple[bytes, ...] = ()
    admins: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        """Whether keys are asked for at all."""
        return bool(self.users or self.admins)

    def role(self, authorization: str | None) -> Role | None:
        """Who sends a header ``Authorization: Bearer KEY``; None for nobody who is known.

        Every key is compared, each in constant time, so that the time it takes tells nothing.
        """
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        user, admin = ([hmac.compare_digest(given, known) for known in keys] for keys in (self.users, self.admins))
        if scheme.lower() != "bearer":
            return None
        return "admin" if any(admin) else "user" if any(user) else None


def read_keys(key_file: Path | None = None, admin_key_file: Path | None = None, environment: bool = True) -> Keys:
    """The keys of files, one a line, and of ``UNIKE_API_KEYS`` and ``UNIKE_ADMIN_KEYS``, with commas between.

    Raises:
        UnikeError: A file cannot be read or has no key, or a key is too short.
    """
    found = {}
    for role, file, variable in (
        ("user", key_file, "UNIKE_API_KEYS"),
        ("admin", admin_key_file, "UNIKE_ADMIN_KEYS"),
    ):
        keys = [] if file is None else _checked(_lines(file), str(file))
        if file is not None and not keys:
            raise UnikeError(f"there is no key in {file}; write one in a line")
        if environment:
            keys += _checked(filter(None, map(str.strip, os.environ.get(variable, "").split(","))), variable)
        found[role] = tuple(map(_digest, keys))
    return Keys(found["user"], found["admin"])


def _lines(file: Path) -> list[str]:
    try:
        text = read_file(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UnikeError(f"cannot read the keys in {file}: {reason(error)}") from None
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _checked(keys: Iterable[str], where: str) -> list[str]:
    found = list(keys)
    for key in found:
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise UnikeError(
                f"a key in {where} has fewer than {SHORTEST} characters, or others than ASCII without spaces; "
                "make one with: openssl rand -hex 24"
            )
    return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
