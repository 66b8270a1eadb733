"""What a store tells of: edits that it keeps, lines of its log, and canaries."""

from typing import Any

from pydantic import ConfigDict

from unike.core.schema import Schema


class Value(Schema):
    """What is read from the database; nothing changes it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Stored(Value):
    """An edit that a store keeps, whether it is in force or not.

    Attributes:
        id: 16 hex digits, the same for the same fact, model, method and settings.
        prompt: Of the fact.
        target: The same.
        picture: SHA-256 of its picture, or None.
        picture_name: What that picture's file was called, or None.
        editor: The method.
        source: What the model was called that it was made for.
        fingerprint: Of that model.
        tensors: SHA-256 of its tensors.
        tags: To find it by.
        author: Who added it first.
        reason: Why.
        added_at: When, UTC, ISO 8601.
    """

    id: str
    prompt: str
    target: str
    picture: str | None
    picture_name: str | None
    editor: str
    source: str
    fingerprint: str
    tensors: str
    tags: tuple[str, ...]
    author: str
    reason: str
    added_at: str


class Entry(Value):
    """A line of the log.

    Attributes:
        number: From 1 on, without a gap.
        at: When, UTC, ISO 8601.
        author: Who did it.
        action: What: ``add``, ``revoke``, ``restore``, ``roll back``, ``pull``, ``add canary``, ``drop canary``.
        set: In which set; empty for what concerns the store as a whole.
        version: Which version of the set that made.
        edit: Which edit it was about, or None.
        reason: Why.
        detail: What else is to be kept: answers before and after, what was replaced.
        seal: SHA-256 of the line and the seal of the line before: a line that is changed or missing breaks the chain.
    """

    number: int
    at: str
    author: str
    action: str
    set: str
    version: int
    edit: str | None
    reason: str
    detail: dict[str, Any]
    seal: str


class Canary(Value):
    """A question whose answer no edit is to change.

    Attributes:
        id: 16 hex digits, the same for the same question.
        prompt: What is asked.
        picture: SHA-256 of its picture, or None.
    """

    id: str
    prompt: str
    picture: str | None
