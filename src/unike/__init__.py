"""Edit single facts in vision-language models, and measure the edits honestly.

>>> import unike
>>> model = unike.load_backbone("mini")
>>> edit = unike.edit(model, image="flag.png", prompt="Which country does this flag belong to?", target="Kenya")
>>> with edit.attached(model):
...     print(model.ask("flag.png", "Whose flag is this?"))
>>> edit.save_pretrained("edits/kenya")
"""

from typing import TYPE_CHECKING, Any

from unike.core.errors import UnikeError
from unike.core.version import __version__

if TYPE_CHECKING:
    from unike.api import edit, make_editor
    from unike.backbones import load_backbone
    from unike.backbones.wrapping import wrap
    from unike.core.images import picture
    from unike.data.queries import EditCase, Probe, Query
    from unike.edits.edit import Edit
    from unike.edits.edited import EditedModel, RowsEdited
    from unike.edits.stack import attached

__all__ = [
    "Edit",
    "EditCase",
    "EditedModel",
    "Probe",
    "Query",
    "RowsEdited",
    "UnikeError",
    "__version__",
    "attached",
    "edit",
    "load_backbone",
    "make_editor",
    "picture",
    "wrap",
]

_HOMES = {  # imported on first use, so that `import unike` and `unike --help` do not wait for torch
    "Edit": "unike.edits.edit",
    "EditedModel": "unike.edits.edited",
    "EditCase": "unike.data.queries",
    "Probe": "unike.data.queries",
    "Query": "unike.data.queries",
    "RowsEdited": "unike.edits.edited",
    "attached": "unike.edits.stack",
    "edit": "unike.api",
    "load_backbone": "unike.backbones",
    "make_editor": "unike.api",
    "picture": "unike.core.images",
    "wrap": "unike.backbones.wrapping",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'unike' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
