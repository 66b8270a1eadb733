"""A service on a port: where it may listen, when it is ready, and how it ends."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from unike.core.errors import UnikeError
from unike.serve.keys import Keys

GRACE = 10
"""Seconds that running requests have when the server is told to end."""

HEAD = 1 << 16
"""Bytes of a request's head: httptools, which uvicorn would prefer, keeps heads of any length in memory."""


def check_host(host: str, keys: Keys, no_auth: bool) -> None:
    """Refuse to be reached from other machines without keys, unless that is what is wanted.

    Raises:
        UnikeError: It would be.
    """
    if not keys and not no_auth and not is_local(host):
        raise UnikeError(
            f"without keys, whoever reaches {host} could use the model and change its edits; give --api-key-file and "
            "--admin-key-file, or --no-auth if something before it asks who comes"
        )


def is_local(host: str) -> bool:
    """Whether a host is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; port 0 is any that is free.

    Raises:
        UnikeError: It cannot be.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, number)
    except (OSError, UnicodeError, OverflowError) as error:
        raise UnikeError(f"cannot listen on {host}:{port}: {error}") from None
    try:
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        return found
    except OSError as error:
        found.close()
        why = "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise UnikeError(f"cannot listen on {host}:{port}: {why}; give another --port") from None


def address_of(listening: socket.socket) -> str:
    """Where clients find it."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


class Server(uvicorn.Server):
    """Says when it is ready.

    Args:
        config: Of uvicorn.
        ready: Called then.
    """

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does, and say so."""
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does, once those have been told that would keep a line open for good."""
        state = getattr(self.config.app, "state", None)  # the door before replicas has none, and no page either
        for tell in getattr(state, "at_shutdown", ()):
            tell()
        await super().shutdown(sockets)


def serve(app: ASGIApp, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Answer requests until the process is told to end; those that run have `GRACE` seconds.

    Raises:
        KeyboardInterrupt: It was told so with Ctrl-C.
        SystemExit: It was told so with SIGTERM; with 0.
    """
    with listening:
        Server(config_of(app), ready).run(sockets=[listening])


def config_of(app: ASGIApp, grace: int = GRACE) -> uvicorn.Config:
    """How uvicorn is to serve an app.

    Args:
        app: The service.
        grace: Seconds that running requests have at the end.
    """
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        http="h11",
        h11_max_incomplete_event_size=HEAD,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=grace,
    )


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Within the block SIGTERM ends the process with exit code 0."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    before: Any = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Within the block, a line for each request, and what goes wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logs = [(logging.getLogger("unike.serve"), logging.INFO), (logging.getLogger("uvicorn.error"), logging.WARNING)]
    before = [(log, log.level) for log, _ in logs]
    for log, level in logs:
        log.addHandler(handler)
        log.setLevel(level)
    try:
        yield
    finally:
        for log, level in before:
            log.removeHandler(handler)
            log.setLevel(level)
