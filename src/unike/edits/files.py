"""Edits on disk: a folder with ``edit_config.json`` and ``edit.safetensors``, sealed together."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors import SafetensorError

from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.files import SealedFolder
from unike.core.folders import replace_folder
from unike.core.schema import FileName, Schema, checked
from unike.core.version import __version__
from unike.data.queries import Query
from unike.edits.content import from_bytes, to_bytes
from unike.edits.edit import Edit, EditorConfig
from unike.edits.layout import check_loaded
from unike.edits.saved import FileSource, Source, saved
from unike.edits.tensors import unpacked

CONFIG_FILE, TENSOR_FILE = "edit_config.json", "edit.safetensors"
SAVED = SealedFolder(
    "edit",
    CONFIG_FILE,
    TENSOR_FILE,
    version=2,
    keys=frozenset({"editor", "config", "backbone", "facts"}),
    older=frozenset({1}),  # without copies
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
    content = to_bytes(edit.tensors)
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
    place = str((folder / TENSOR_FILE).absolute())
    try:
        edit = put_together(described, content, FileSource(place, hashlib.sha256(content).hexdigest()))
    except (ValueError, SafetensorError) as error:
        raise SAVED.damaged(folder, str(error)) from None
    for named in edit.config.encoders():
        if named != encoder:
            raise UnikeError(
                f"the edit in {folder} wants to load the sentence encoder {named!r}, which does not ship; if you trust "
                "it, name it: --encoder, or from_pretrained(..., encoder=...)"
            )
    return edit


def put_together(described: Mapping[str, Any], content: bytes, source: Source) -> Edit:
    """The reverse of `taken_apart`.

    Args:
        described: What describes the edit.
        content: The bytes of its tensors.
        source: Where they can be read again, when an input calls upon the edit.

    Raises:
        ValueError: The description does not say what it has to, or the tensors do not fit it.
        SafetensorError: They are none.
        UnikeError: A method or setting is unknown.
    """
    saved_edit = checked(SavedEdit, described)
    editor = registry.editors.get(saved_edit.editor)
    facts = [Query(f.prompt, None if f.image is None else Path(f.image), f.target) for f in saved_edit.facts]
    config = _parsed(editor.config_class, json.dumps(saved_edit.config))
    tensors = from_bytes(content)
    edit: Edit = editor.edit_class(
        config,
        {name: unpacked(tensor) for name, tensor in tensors.items()},
        facts,
        fingerprint=sys.intern(saved_edit.backbone.fingerprint),
        source=sys.intern(saved_edit.backbone.source),
    )
    edit.questions = tuple(
        (words, fact.picture or found) for fact, (words, found) in zip(saved_edit.facts, edit.questions, strict=True)
    )
    check_loaded(edit)
    standing = edit.standing(config)
    if standing:
        edit.tensors = saved(source, tensors, standing)
    return edit


@lru_cache(maxsize=256)
def _parsed(config_class: type[EditorConfig], settings: str) -> EditorConfig:
    """The same object for all edits that were made with the same settings: it is frozen, and large beside an edit."""
    return config_class.parse(json.loads(settings))
