"""What a program gives in the place of a model and edits: taken as it is meant, or refused in one line."""

from typing import Any

from unike.backbones.adapter import Backbone
from unike.backbones.given import given_list, shown
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
    return given_list(
        edits,
        Edit,
        "an edit is what unike.edit or unike.Edit.from_pretrained(...) gives, not {}",
        "edits are a list of them, not {}; read one with unike.Edit.from_pretrained(...)",
    )
