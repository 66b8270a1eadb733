"""What a program gives in the place of a model and edits: taken as it is meant, or refused in one line."""

from collections.abc import Iterable, Mapping
from typing import Any

from unike.backbones.adapter import Backbone
from unike.backbones.given import shown
from unike.core.errors import UnikeError
from unike.edits.edit import Edit


def given_model(model: Any) -> Backbone:
    """A backbone.

    Raises:
        UnikeError: It is something else.
    """
    if not isinstance(model, Backbone):
        raise UnikeError(f"a model is what unike.load_backbone or unike.wrap gives, not {shown(model)}")
    return model


def given_edits(edits: Any) -> list[Edit]:
    """Edits, of any iterable; one alone is a stack of one.

    Raises:
        UnikeError: It is something else.
    """
    if isinstance(edits, Edit):
        return [edits]
    if isinstance(edits, str | bytes | Mapping) or not isinstance(edits, Iterable):
        raise UnikeError(f"edits are a list of them, not {shown(edits)}; read one with unike.Edit.from_pretrained(...)")
    found = list(edits)
    for edit in found:
        if not isinstance(edit, Edit):
            raise UnikeError(f"an edit is what unike.edit or unike.Edit.from_pretrained(...) gives, not {shown(edit)}")
    return found
