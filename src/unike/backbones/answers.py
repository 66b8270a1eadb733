"""What an unedited model answers, kept on disk: asked once, whichever editor is measured next.

Answers are known by their content: the model (fingerprint, dtype, template), the longest answer, the prompt and the
bytes of the picture. One JSON line each is appended as it comes, so a run that is killed has lost none; a line that was
cut short is not read, and its question is asked again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import UNEDITED, attached_to
from unike.core import home
from unike.core.errors import UnikeError
from unike.core.files import append_lines, file_hash, open_file
from unike.data.queries import Query

BATCH = 16
"""Questions that are asked in one pass."""


@dataclass(frozen=True)
class Team:
    """Processes that share a run; each does its part, and all come to the same decisions.

    Args:
        rank: Of this process.
        size: How many there are.
        wait: Returns once all have called it.
    """

    rank: int = 0
    size: int = 1
    wait: Callable[[], None] = lambda: None

    def is_mine(self, key: str) -> bool:
        """Whether this process asks a question; ``key`` is its `content_key`."""
        return int(key[:8], 16) % self.size == self.rank


ALONE = Team()


class Answers:
    """Greedy answers of one unedited backbone.

    Args:
        backbone: With no edit on it whenever something is asked.
        max_new_tokens: The longest answer.
    """

    def __init__(self, backbone: Backbone, max_new_tokens: int) -> None:
        self.backbone = backbone
        self.max_new_tokens = max_new_tokens
        dtype = str(backbone.dtype).removeprefix("torch.")
        template = hashlib.sha256(backbone.template.encode()).hexdigest()[:8]
        name = f"{backbone.fingerprint()}-{dtype}-{template}-{max_new_tokens}.jsonl"
        self.path = home.folder() / "answers" / name
        self._known: dict[str, str] = {}
        self._read_to = 0

    def __getitem__(self, query: Query) -> str:
        """The answer to a question that was asked; its target is not looked at."""
        return self._known[content_key(query)]

    def __contains__(self, query: Query) -> bool:
        """Whether a question was asked."""
        return content_key(query) in self._known

    def ask(
        self,
        queries: Sequence[Query],
        progress: Callable[[int, int], None] | None = None,
        *,
        team: Team = ALONE,
    ) -> None:
        """Make sure that the answers are there: read those that are on disk, ask and keep the others.

        Args:
            queries: Any mix; targets are not looked at.
            progress: Called with how many new questions are answered, and how many there are.
            team: Processes that ask for the same queries at the same time, each its share.

        Raises:
            UnikeError: An image cannot be read, the file cannot be written, or an edit is attached, whose answers would
                pass for the model's own.
        """
        check_unedited(self.backbone)
        self._read()
        wanted = {content_key(query): query.question for query in queries}
        self._ask([key for key in wanted if team.is_mine(key)], wanted, progress or (lambda done, total: None))
        if team.size > 1:
            team.wait()
            self._read()
            self._ask(list(wanted), wanted, lambda done, total: None)  # what others found does not reach another disk

    def _ask(self, keys: Sequence[str], wanted: Mapping[str, Query], progress: Callable[[int, int], None]) -> None:
        missing = [key for key in keys if key not in self._known]
        # Text alone apart from pictures, and short prompts first: rows of one pass are then of like length.
        missing.sort(key=lambda key: (wanted[key].image is not None, len(wanted[key].prompt), key))
        for start in range(0, len(missing), BATCH):
            progress(start, len(missing))
            part = missing[start : start + BATCH]
            found = self.backbone.generate([wanted[key] for key in part], max_new_tokens=self.max_new_tokens)
            self._keep(dict(zip(part, found, strict=True)))
        progress(len(missing), len(missing))

    def _read(self) -> None:
        """Take in what was added to the file, by this process or another."""
        try:
            with open_file(self.path) as file:
                file.seek(self._read_to)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read_to += len(line)
                    try:
                        entry = json.loads(line)
                        self._known[str(entry["key"])] = str(entry["answer"])
                    except (ValueError, LookupError, TypeError):
                        continue  # cut short by a kill, and closed by the next writer
        except FileNotFoundError:
            return
        except OSError as error:
            raise UnikeError(f"cannot read {self.path}: {error.strerror}") from None

    def _keep(self, answers: dict[str, str]) -> None:
        """Append in one write: lines of several processes do not mix."""
        lines = "".join(json.dumps({"key": key, "answer": answer}) + "\n" for key, answer in answers.items())
        try:
            append_lines(self.path, lines)
        except OSError as error:
            raise UnikeError(f"cannot write {self.path}: {error.strerror}; set UNIKE_HOME") from None
        self._known.update(answers)


def check_unedited(backbone: Backbone) -> None:
    """Refuse a model with an edit on it where its own answers are wanted.

    Raises:
        UnikeError: An edit is attached.
    """
    if attached_to(backbone) is not UNEDITED:
        raise UnikeError("an edit is attached: what the model answers now is not what it answers by itself")


def content_key(query: Query) -> str:
    """A question by its content: the prompt, the picture's bytes, and what was said before."""
    picture = "" if query.image is None else image_hash(query.image)
    before = [query.system, *((turn.question, turn.answer) for turn in query.history)]
    said = f"\0{json.dumps(before)}" if any(before) else ""
    return hashlib.sha256(f"{picture}\n{query.prompt}{said}".encode()).hexdigest()


def image_hash(path: Path) -> str:
    """SHA-256 of a picture's file.

    Raises:
        UnikeError: It cannot be read.
    """
    try:
        return file_hash(path)
    except OSError as error:
        raise UnikeError(f"cannot read {path}: {error.strerror}") from None
