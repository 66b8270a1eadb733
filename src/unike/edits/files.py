"""Edits on disk: a folder with ``edit_config.json`` and ``edit.safetensors``, sealed together."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.files import SealedFolder
from unike.core.folders import replace_folder
from unike.core.schema import FileName, Schema, checked
from unike.core.version import __version__
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.edits.layout import check_loaded

CONFIG_FILE, TENSOR_FILE = "edit_config.json", "edit.safetensors"
SAVED = SealedFolder(
    "edit", CONFIG_FILE, TENSOR_FILE, version=1, keys=frozenset({"editor", "config", "backbone", "facts"})
)


HASH = "^[0-9a-f]{64}$"


def is_hash(text: str) -> bool:
    """Whether a picture is known by its content."""
    return re.fullmatch(HASH, text) is not None


def write(edit: Edit, folder: Path) -> None:
    """As `Edit.save_pretrained`."""
    replace_folder(folder, SAVED.files(*taken_apart(edit)), known_by=CONFIG_FILE)


def taken_apart(edit: Edit) -> tuple[dict[str, Any], bytes]:
    """What describes an edit, as JSON has it, and the bytes of its tensors."""
    content = save({name: packed(tensor.cpu()) for name, tensor in edit.tensors.items()})
    described: dict[str, Any] = {
        "unike": __version__,
        "editor": edit.editor,
        "config": edit.config.model_dump(mode="json"),
        "backbone": {"source": edit.source, "fingerprint": edit.fingerprint},
        "facts": [
            {
                "image": None if q.image is None else str(q.image),
                "picture": picture if is_hash(picture) else None,
                "prompt": q.prompt,
                "target": q.target,
            }
            for q, (_, picture) in zip(edit.facts, edit.questions, strict=True)
        ],
    }
    return described, content


class SavedFact(Schema):
    """A query as files keep it; ``picture`` is the SHA-256 of the picture, whose file may have moved since."""

    image: FileName | None
    picture: str | None = Field(None, pattern=HASH)
    prompt: str = Field(min_length=1)
    target: str = Field(min_length=1)


class SavedBackbone(Schema):
    """What an edit was made for."""

    source: str
    fingerprint: str


class SavedEdit(Schema):
    """``edit_config.json``."""

    editor: str
    config: dict[str, Any]
    backbone: SavedBackbone
    facts: list[SavedFact] = Field(min_length=1)


def read(folder: Path, encoder: str | None = None) -> Edit:
    """As `Edit.from_pretrained`."""
    described, content = SAVED.read(folder)
    try:
        edit = put_together(described, content)
    except (ValueError, SafetensorError) as error:
        raise SAVED.damaged(folder, str(error)) from None
    for named in edit.config.encoders():
        if named != encoder:
            raise UnikeError(
                f"the edit in {folder} wants to load the sentence encoder {named!r}, which does not ship; if you trust "
                "it, name it: --encoder, or from_pretrained(..., encoder=...)"
            )
    return edit


def put_together(described: Mapping[str, Any], content: bytes) -> Edit:
    """The reverse of `taken_apart`.

    Raises:
        ValueError: The description does not say what it has to, or the tensors do not fit it.
        SafetensorError: They are none.
        UnikeError: A method or setting is unknown.
    """
    saved = checked(SavedEdit, described)
    editor = registry.editors.get(saved.editor)
    facts = [Query(f.prompt, None if f.image is None else Path(f.image), f.target) for f in saved.facts]
    edit: Edit = editor.edit_class(
        editor.config_class.parse(saved.config),
        {name: unpacked(tensor) for name, tensor in load(content).items()},
        facts,
        fingerprint=saved.backbone.fingerprint,
        source=saved.backbone.source,
    )
    edit.questions = tuple(
        (words, fact.picture or found) for fact, (words, found) in zip(saved.facts, edit.questions, strict=True)
    )
    check_loaded(edit)
    return edit


def packed(tensor: Tensor) -> Tensor:
    """In half the bytes, where nothing is lost."""
    half = tensor.bfloat16()
    return half if tensor.dtype == torch.float32 and torch.equal(half.float(), tensor) else tensor


def unpacked(tensor: Tensor) -> Tensor:
    """The reverse: edits are computed with in float32."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
