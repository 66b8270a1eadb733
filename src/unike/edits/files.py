"""Edits on disk: a folder with ``edit_config.json`` and ``edit.safetensors``, sealed together."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.files import SealedFolder
from unike.core.folders import replace_folder
from unike.core.version import __version__
from unike.data.queries import Query
from unike.edits.edit import Edit

CONFIG_FILE, TENSOR_FILE = "edit_config.json", "edit.safetensors"
SAVED = SealedFolder(
    "edit", CONFIG_FILE, TENSOR_FILE, version=1, keys=frozenset({"editor", "config", "backbone", "facts"})
)


def write(edit: Edit, folder: Path) -> None:
    """As `Edit.save_pretrained`."""
    content = save({name: tensor.cpu() for name, tensor in edit.tensors.items()})
    described: dict[str, Any] = {
        "unike": __version__,
        "editor": edit.editor,
        "config": edit.config.model_dump(mode="json"),
        "backbone": {"source": edit.source, "fingerprint": edit.fingerprint},
        "facts": [
            {"image": None if q.image is None else str(q.image), "prompt": q.prompt, "target": q.target}
            for q in edit.facts
        ],
    }
    replace_folder(folder, SAVED.files(described, content), known_by=CONFIG_FILE)


def read(folder: Path, encoder: str | None = None) -> Edit:
    """As `Edit.from_pretrained`."""
    described, content = SAVED.read(folder)
    try:
        editor = registry.editors.get(described["editor"])
        facts = [
            Query(fact["prompt"], None if fact["image"] is None else Path(fact["image"]), fact["target"])
            for fact in described["facts"]
        ]
        edit: Edit = editor.edit_class(
            editor.config_class.parse(described["config"]),
            load(content),
            facts,
            fingerprint=described["backbone"]["fingerprint"],
            source=described["backbone"]["source"],
        )
    except (LookupError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise SAVED.damaged(folder, repr(error)) from None
    for named in edit.config.encoders():
        if named != encoder:
            raise UnikeError(
                f"the edit in {folder} wants to load the sentence encoder {named!r}, which does not ship; if you trust "
                "it, name it: --encoder, or from_pretrained(..., encoder=...)"
            )
    return edit
