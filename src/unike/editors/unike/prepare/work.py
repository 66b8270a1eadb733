"""What a run is made with, and what it has done so far: results under names that say what they were made from.

A run that is cut off goes on where it stopped, and ends with the same bytes.
"""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.core.files import append_lines, check_file, read_file, replace_file
from unike.core.folders import WORK, reason
from unike.core.progress import Progress, silent
from unike.data.provenance import digest
from unike.editors.unike.prepare.config import PrepareConfig
from unike.edits.stack import edits_on


class Work:
    """A run, with what is done so far in a folder within the one to be.

    Args:
        out: The folder to be.
        backbone: Whose answers and states are kept; those of others are not found.
        config: Settings.
        progress: Told about every stage.

    Raises:
        UnikeError: The backbone has an edit on it.
    """

    def __init__(self, out: Path, backbone: Backbone, config: PrepareConfig, progress: Progress = silent) -> None:
        if edits_on(backbone):
            raise UnikeError("the knowledge is that of the unedited model; detach the edits first")
        self.folder = out / WORK
        self.backbone, self.config, self.progress = backbone, config, progress

    def key(self, made_from: Any) -> str:
        """A short hash of everything that a result depends on: the backbone, and a JSON value."""
        return digest([self._made_for, made_from])

    @cached_property
    def _made_for(self) -> list[str]:
        return [self.backbone.fingerprint(), str(self.backbone.dtype), self.backbone.template]

    def once(
        self, name: str, made_from: Any, make: Callable[[], tuple[dict[str, Tensor], Any]]
    ) -> tuple[dict[str, Tensor], Any]:
        """Tensors and a JSON value, made now or by an earlier run.

        Args:
            name: Of the file.
            made_from: A JSON value with everything that the result depends on beside the backbone.
            make: Called if there is no such result.
        """
        path = self.folder / f"{name}-{self.key(made_from)}.safetensors"
        try:
            check_file(path)
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["notes"])  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            tensors, notes = make()
            tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            self._make_folder()
            replace_file(path, save(tensors, {"notes": json.dumps(notes)}))
            return tensors, notes

    def answers(self) -> dict[str, str]:
        """Key of a question to the answer it got."""
        try:
            content = read_file(self._answer_file)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UnikeError(f"cannot read {self._answer_file}: {reason(error)}") from None
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # a line that was cut off
            replace_file(self._answer_file, whole)
        try:
            return {line["key"]: line["answer"] for line in map(json.loads, whole.splitlines())}
        except (ValueError, LookupError, TypeError):
            raise UnikeError(f"{self._answer_file} is damaged; delete it, and the questions are asked anew") from None

    def remember(self, answers: Mapping[str, str]) -> None:
        """Append answers."""
        lines = [json.dumps({"key": key, "answer": answer}, ensure_ascii=False) for key, answer in answers.items()]
        try:
            append_lines(self._answer_file, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise UnikeError(f"cannot write {self._answer_file}: {reason(error)}") from None

    @property
    def _answer_file(self) -> Path:
        return self.folder / "answers.jsonl"

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnikeError(f"cannot write {self.folder}: {error.strerror}; choose another folder") from None
