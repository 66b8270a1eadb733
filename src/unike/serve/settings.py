"""What a service allows, and how much of it; each is an option of ``unike serve``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from unike.core.options import Form, Option

MEGABYTE = 1 << 20

FOLDERS = Form(list[Path] | None, read=lambda given, flag: tuple(given), write=lambda given: list(map(str, given)))
"""Folders, each behind a flag of its own."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one server.

    Args:
        name: What requests call the model.
        max_new_tokens: The longest answer, where a request does not say.
        most_tokens: The longest that a request may ask for.
        lines: Whether an answer may have several lines; otherwise it is its first, as in ``unike ask``.
        max_prompt: Characters of all messages together.
        max_question: Characters of the question of an edit: all others wait while it is made.
        max_body_mb: Megabytes of a request.
        max_picture_mb: Megabytes of a picture's file.
        image_folders: Pictures below these may be named by ``file:`` URLs.
        max_batch: Answers that are written together, and the most that one request may ask for.
        max_waiting: Answers that may wait; further ones are told to come again.
        max_open: Requests that may be open; the same.
        timeout: Seconds for a request to be answered, and for its body to arrive.
        edit_timeout: Seconds for an edit to be made.
        log_prompts: Whether prompts and answers are written into the log.
        any_host: Whether requests may be addressed to any host. Where no key is asked for, they may not, and none may
            come from another site's page: else any page in a browser on this machine could use the service.
    """

    name: Annotated[str, Option("What requests call the model.", shown="as --model")] = ""
    max_new_tokens: Annotated[int, Option("The longest answer, where a request says none.", least=1)] = 16
    most_tokens: Annotated[int, Option("The longest answer that a request may ask for.", least=1)] = 1024
    lines: Annotated[bool, Option("Let answers have several lines; else each is its first.")] = False
    max_prompt: Annotated[int, Option("Characters of a request's messages.", least=1)] = 32_000
    max_question: Annotated[int, Option("Characters of an edit's question.", least=1)] = 2000
    max_body_mb: Annotated[int, Option("Megabytes of a request.", least=1)] = 16
    max_picture_mb: Annotated[int, Option("Megabytes of a picture's file.", least=1)] = 10
    image_folders: Annotated[
        tuple[Path, ...],
        Option("Pictures below it may be named by file: URLs; repeatable.", "--allow-images", FOLDERS, metavar="DIR"),
    ] = ()
    max_batch: Annotated[int, Option("Answers that are written together.", least=1)] = 16
    max_waiting: Annotated[int, Option("Answers that may wait; further ones get 429.", least=1)] = 128
    max_open: Annotated[int, Option("Requests that may be open; further ones get 429.", least=1)] = 256
    timeout: Annotated[float, Option("Seconds for a request to be answered.", least=1)] = 120.0
    edit_timeout: Annotated[float, Option("Seconds for an edit to be made.", least=1)] = 600.0
    log_prompts: Annotated[bool, Option("Write prompts and answers into the log.")] = False
    any_host: bool = False

    @property
    def max_body(self) -> int:
        """Bytes of a request."""
        return self.max_body_mb * MEGABYTE

    @property
    def max_picture(self) -> int:
        """Bytes of a picture's file."""
        return self.max_picture_mb * MEGABYTE
