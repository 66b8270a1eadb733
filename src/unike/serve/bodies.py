"""How large the body of a request may be, and what is done with one that is larger."""

import asyncio
import re
import time

from starlette.types import Receive

from unike.serve.errors import ApiError, invalid
from unike.serve.sessions import LOGIN, is_studio
from unike.serve.settings import Settings

UPLOAD = re.compile(r"/studio/gradio_api/upload/?")
"""Where the studio's visitors send pictures."""

CHANGES = re.compile(r"/v1/(edits|sets)/.+")
"""Where a few words are sent: who does something with an edit or a set, and why."""

KEY, WORDS, PRESS = 1 << 12, 1 << 17, 1 << 20
"""Bytes of a key to sign in with, of a change, and of what a button of the studio sends."""

DRAINED, PATIENCE = 4, 2.0
"""So many times the largest body is read of one that is too large, for so many seconds."""

MOST_PARTS = 100_000
"""Values in a body's JSON: millions of them, which are a few megabytes, would take seconds and gigabytes to read."""


def most_of(path: str, settings: Settings) -> int:
    """Bytes of a request that is sent to a path."""
    if path == LOGIN:
        return KEY
    if CHANGES.fullmatch(path):
        return WORDS
    if is_studio(path) and not UPLOAD.fullmatch(path):
        return min(PRESS, settings.max_body)
    return settings.max_body


def too_large(most: int) -> ApiError:
    """The error for a body that is."""
    return ApiError(413, f"a request has at most {most:,} bytes here", headers={"connection": "close"})


async def drain(receive: Receive, most: int) -> None:
    """Read the rest of a body that is refused: some clients read an answer only when all is sent.

    To these a connection that is closed before looks broken.

    Args:
        receive: What is still sent.
        most: Bytes that are read at most.
    """
    seen, until = 0, time.monotonic() + PATIENCE
    while seen <= most:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
        except asyncio.TimeoutError:
            return
        if not message.get("more_body", False):
            return
        seen += len(message.get("body", b""))


def check_parts(body: bytes) -> None:
    """Refuse JSON of more values than anything here has, before it is read.

    Raises:
        ApiError: As it says.
    """
    if sum(map(body.count, (b"[", b"{", b","))) > MOST_PARTS:
        raise invalid(
            f"the body has more than {MOST_PARTS:,} brackets and commas; nothing that is asked here has so many"
        )
