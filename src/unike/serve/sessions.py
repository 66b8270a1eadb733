"""Who has signed in to the studio: browsers send no header of their own accord, and so a cookie stands for a key."""

import hashlib
import secrets
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

from unike.serve.keys import Holder

STUDIO = "/studio"
"""Where the studio is; all that is below it belongs to it."""

LOGIN = f"{STUDIO}/login"

COOKIE = "unike-studio"

LASTS = 12 * 3600
"""Seconds after which a key is asked for again."""


def is_studio(path: str) -> bool:
    """Whether a path is the studio's."""
    return path == STUDIO or path.startswith(f"{STUDIO}/")


class Sessions:
    """Random tokens, each of which stands for a key until it is dropped or too old; they are kept as digests.

    Args:
        clock: Seconds, as `time.monotonic`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[bytes, tuple[Holder, float]] = {}

    def begin(self, holder: Holder) -> str:
        """A new token for whoever has shown a key."""
        now = self._clock()
        self._known = {token: kept for token, kept in self._known.items() if kept[1] > now}
        token = secrets.token_urlsafe(32)
        self._known[_digest(token)] = holder, now + LASTS
        return token

    def holder(self, cookies: str | None) -> Holder | None:
        """Whom a header ``Cookie`` stands for; None for nobody who is known."""
        holder, until = self._known.get(_digest(_token(cookies)), (None, 0.0))
        return holder if until > self._clock() else None

    def end(self, cookies: str | None) -> None:
        """Forget the token in a header ``Cookie``."""
        self._known.pop(_digest(_token(cookies)), None)


def _token(cookies: str | None) -> str:
    try:
        found = SimpleCookie(cookies or "").get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
