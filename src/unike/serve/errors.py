"""What clients are told when something is wrong: OpenAI's format, one line, never a traceback."""

import logging
from collections.abc import Mapping
from typing import Any

from unike.core.errors import ReadOnly, Unavailable, UnikeError

LOG = logging.getLogger("unike.serve")

UNAVAILABLE = "the store of edits cannot be reached, or is damaged; try again, or look at the server's log"
READ_ONLY = "the store of edits is read-only here: it can be read and asked, not changed"

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
"""OpenAI's word for a status; others are ``invalid_request_error`` below 500, and ``server_error`` from there on."""


class ApiError(Exception):
    """A request that is not answered.

    Args:
        status: Of HTTP.
        message: What is wrong and what to do, in one line.
        code: OpenAI's short name for it, where there is one.
        param: The field that is wrong.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """As JSON has it."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The error for a request that makes no sense."""
    return ApiError(400, message, param=param, code=code)


def too_many(message: str) -> ApiError:
    """The error for a request that comes while there is too much to do."""
    return ApiError(429, message, code="overloaded", headers={"retry-after": "1"})


def told(error: Exception, status: int = 400) -> ApiError:
    """What a client is told of an exception.

    Args:
        error: Any.
        status: Of a `UnikeError`, which is about what was asked for, unless the store is what fails: where that lies is
            for the log alone.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UnikeError):
        line = " ".join(str(error).split()).encode(errors="backslashreplace").decode()
        if isinstance(error, Unavailable):
            LOG.error("%s", line)
            return ApiError(503, UNAVAILABLE, headers={"retry-after": "2"})
        return ApiError(403, READ_ONLY) if isinstance(error, ReadOnly) else ApiError(status, line)
    return ApiError(500, "something went wrong in the server; its log says what")
