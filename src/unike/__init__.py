"""Edit single facts in vision-language models, and measure the edits honestly.

>>> import unike
>>> model = unike.load_backbone("mini")
>>> edit = unike.edit(model, image="flag.png", prompt="Which country does this flag belong to?", target="Kenya")
>>> with edit.attached(model):
...     print(model.ask("flag.png", "Whose flag is this?"))
>>> edit.save_pretrained("edits/kenya")
"""

from typing import TYPE_CHECKING, Any

from unike._version import __version__
from unike.errors import UnikeError

if TYPE_CHECKING:
    from unike.api import edit, make_editor
    from unike.backbones import load_backbone
    from unike.editors.base import Edit, attached
    from unike.types import EditCase, Probe, Query

__all__ = [
    "Edit",
    "EditCase",
    "Probe",
    "Query",
    "UnikeError",
    "__version__",
    "attached",
    "edit",
    "load_backbone",
    "make_editor",
]

_HOMES = {  # imported on first use, so that `import unike` and `unike --help` do not wait for torch
    "Edit": "unike.editors.base",
    "EditCase": "unike.types",
    "Probe": "unike.types",
    "Query": "unike.types",
    "attached": "unike.editors.base",
    "edit": "unike.api",
    "load_backbone": "unike.backbones",
    "make_editor": "unike.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'unike' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
