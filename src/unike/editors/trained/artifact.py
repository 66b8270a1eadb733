"""Networks that editors were given in training: what is saved of them, where it is found, and what they have seen.

The loop writes such a folder (``unike train``): ``trained.json``, ``trained.safetensors``, and the log of the training,
``log.jsonl``. Never a pickle.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.core import home
from unike.core.errors import UnikeError
from unike.core.files import SealedFolder, read_file
from unike.core.memo import MemoOf, file_stamp
from unike.core.schema import Schema, checked, parse_json
from unike.data.leaks import ImageHashes, Trace
from unike.editors.common.saved import SavedBackbone, SavedTrace

CONFIG_FILE, TENSOR_FILE, LOG_FILE = "trained.json", "trained.safetensors", "log.jsonl"
SAVED = SealedFolder(
    "trained network",
    CONFIG_FILE,
    TENSOR_FILE,
    version=2,
    keys=frozenset({"editor", "backbone", "network", "sources"}),
    older=frozenset({1}),  # kept pictures apart from the questions about them
)


class SavedTrained(Schema):
    """``trained.json``."""

    editor: str
    backbone: SavedBackbone
    network: dict[str, Any]
    sources: list[SavedTrace]


@dataclass(frozen=True, eq=False)
class Trained:
    """The trained network of an editor for one backbone.

    Args:
        description: As in ``trained.json``: the editor, the backbone, the network's settings, data and sources.
        tensors: Its ``state_dict``.
    """

    description: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def settings(self) -> dict[str, Any]:
        """Of the network."""
        return dict(self.description["network"])

    @property
    def sources(self) -> tuple[Trace, ...]:
        """Every question that was trained on."""
        return tuple(map(Trace.from_json, self.description["sources"]))

    def check(self, editor: str, backbone: Backbone) -> None:
        """Refuse another editor or backbone.

        Raises:
            UnikeError: It was trained for another.
        """
        made_for = self.description["backbone"]
        if self.description["editor"] != editor:
            raise UnikeError(
                f"the network was trained for the editor {self.description['editor']!r}, not for {editor!r}"
            )
        if not backbone.is_known_as(made_for["fingerprint"]):
            raise UnikeError(
                f"the network was trained for {made_for['source']!r} ({made_for['fingerprint']}), not for "
                f"{backbone.source!r} ({backbone.fingerprint()}); {how_to_train(editor, backbone)}"
            )

    def files(self) -> dict[str, bytes]:
        """Both files, name to content."""
        return SAVED.files(self.description, save({n: t.detach().cpu().contiguous() for n, t in self.tensors.items()}))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read a trained network.

        Raises:
            UnikeError: Nothing there, or something that was changed, cut short, or made by a newer version.
        """
        described, content = SAVED.read(Path(folder))
        try:
            tensors = load(content)
            if described["format"] == 1:
                described["sources"] = sources_of_format_1(described["sources"])
            checked(SavedTrained, described)
            for name, tensor in tensors.items():
                if not tensor.isfinite().all():
                    raise ValueError(f"the tensor {name} is not finite")
        except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise SAVED.damaged(Path(folder), repr(error)) from None
        return cls({key: value for key, value in described.items() if key not in ("format", "sha256")}, tensors)


def sources_of_format_1(kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As they are kept since: then ``questions`` were pairs, with the ``images`` in a dictionary of their own."""
    pictures = {content: ImageHashes(content, perceptual) for content, perceptual in kept["images"].items()}
    return [
        Trace(prompt, None if content is None else pictures[content]).to_json() for prompt, content in kept["questions"]
    ]


def log_lines(log: Sequence[Mapping[str, Any]]) -> bytes:
    """The log of a training as JSON, a line for each validation."""
    return "".join(json.dumps(entry) + "\n" for entry in log).encode()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The validations of a finished training.

    Raises:
        UnikeError: They cannot be read.
    """
    try:
        return [parse_json(line) for line in read_file(folder / LOG_FILE).decode().splitlines()]
    except (OSError, ValueError) as error:
        raise UnikeError(f"cannot read {folder / LOG_FILE}: {error}") from None


def place(editor: str, backbone: Backbone) -> Path:
    """Where the trained network of an editor is kept unless another folder is chosen."""
    return backbone.folder_in(home.folder() / "trained" / editor)


def find(editor: str, backbone: Backbone, folder: str | Path | None = None) -> Trained:
    """The trained network of an editor.

    Args:
        editor: Its name.
        backbone: The model it is to edit.
        folder: Where to look; None for `place`.

    Raises:
        UnikeError: There is none, or it was trained for another.
    """
    trained = Trained.from_pretrained(_where(editor, backbone, folder))
    trained.check(editor, backbone)
    return trained


def fingerprint_of(editor: str, backbone: Backbone, folder: str | Path | None = None) -> str:
    """A short hash of what `find` would read; reads no tensors.

    Raises:
        UnikeError: There is none.
    """
    return str(SAVED.describe(_where(editor, backbone, folder))["sha256"])[:16]


def stamp(editor: str, backbone: Backbone, folder: str | Path | None = None) -> Hashable:
    """Another one whenever another network has been put where `find` looks; reads no file.

    Raises:
        UnikeError: There is none.
    """
    path = _where(editor, backbone, folder) / CONFIG_FILE
    found = file_stamp(path)
    if found is None:
        raise UnikeError(f"no trained network in {path.parent}: {path.name} is missing")
    return found


_PLACES: MemoOf[tuple[str, Path], Path] = MemoOf()
"""For each cache folder, because the fingerprint in a place's name takes longer to find than the file."""


def _where(editor: str, backbone: Backbone, folder: str | Path | None) -> Path:
    if folder is None:
        where = _PLACES.of(backbone).get((editor, home.folder()), partial(place, editor, backbone))
    else:
        where = Path(folder)
    if folder is None and not SAVED.lies_in(where):
        raise UnikeError(f"{editor} has not been trained for {backbone.source!r} yet; {how_to_train(editor, backbone)}")
    return where


def how_to_train(editor: str, backbone: Backbone) -> str:
    """What to do about it."""
    return f"run: unike train --editor {editor} {backbone.as_options}"
