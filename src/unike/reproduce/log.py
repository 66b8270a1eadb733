"""Which steps of a reproduction are done, and what they took: JSON lines that are only ever added to.

Each line is an `Entry`: ``{"step": "table1/ft-vqa", "command": "unike bench ...", "outcome": "done", ...}``. One that
was cut short by a kill is passed over, as is what another version may have written beside.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from unike.core.errors import UnikeError
from unike.core.files import append_lines, read_file
from unike.core.folders import reason
from unike.core.schema import read_as

FILE = "reproduction.jsonl"

DONE, FAILED = "done", "failed"

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What became of a step.

    Attributes:
        step: Its name.
        command: That it stands for.
        outcome: `DONE` or `FAILED`.
        kind: What is measured alike: ``"bench unike one-step"`` for example.
        amount: How much there is of it: edits, training steps, cases to learn from.
        new: How much of that was done now; what had been done before an interruption is not, and is not timed.
        seconds: It took, without loading the model.
        fixed_seconds: Of these, what it would have taken for any amount.
        load_seconds: Loading the model took, if that was done now.
        bytes: It wrote, as it lies on disk.
        error: Why it failed.
        traceback: Where.
    """

    step: str
    command: str
    outcome: str
    kind: str
    amount: Count = 0
    new: Count = 0
    seconds: Seconds = 0.0
    fixed_seconds: Seconds = 0.0
    load_seconds: Seconds = 0.0
    bytes: Count = 0
    error: str = ""
    traceback: str = ""


ENTRY = TypeAdapter(Entry)


def read_log(out: Path) -> list[Entry]:
    """Every whole line, in the order in which they were written; none where nothing was begun.

    Raises:
        UnikeError: The file cannot be read.
    """
    path = out / FILE
    try:
        lines = read_file(path).split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UnikeError(f"cannot read {path}: {reason(error)}") from None
    entries = []
    for line in lines:
        try:
            entries.append(read_as(ENTRY, line))
        except ValueError:
            continue
    return entries


def add(out: Path, entry: Entry) -> None:
    """Put a line on disk.

    Raises:
        UnikeError: It cannot be written.
    """
    filled = {key: value for key, value in asdict(entry).items() if value or key in ("amount", "new", "seconds")}
    try:
        append_lines(out / FILE, json.dumps(filled, ensure_ascii=False) + "\n")
    except (OSError, UnicodeEncodeError) as error:
        raise UnikeError(f"cannot write {out / FILE}: {error}; choose another folder") from None


def done_with(entries: Sequence[Entry], step: str, command: str) -> bool:
    """Whether a step was done with this very command."""
    return any((each.step, each.command, each.outcome) == (step, command, DONE) for each in entries)
