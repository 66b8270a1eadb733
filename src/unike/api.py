"""One call from a wrong answer to an edit."""

from functools import cache
from typing import Any

from unike.backbones.adapter import Backbone
from unike.core import registry
from unike.core.images import picture
from unike.data.datasets import pocket
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.editors.common.anchors import Anchors
from unike.edits.edit import Edit


@cache
def default_anchors() -> Anchors:
    """Unrelated questions, most editors' idea of what to leave alone: from PocketEdit's train split."""
    return Anchors(pocket.unrelated(), kept=True)


def make_editor(name: str = "unike", *, anchors: Anchors | None = None, **settings: Any) -> Editor[Any]:
    """An editor that edits any number of facts, ``make_editor("unike").edit(model, [Query(...), ...])``.

    Args:
        name: Of a method, see ``unike ls editors``.
        anchors: Questions to leave alone; None for `default_anchors`.
        **settings: Of the editor's config.

    Raises:
        UnikeError: An unknown method or setting.
    """
    chosen = default_anchors() if anchors is None else anchors  # an empty set is a choice too
    method: Editor[Any] = registry.editors.get(name)(anchors=chosen, **settings)
    return method


def edit(
    model: Backbone,
    *,
    prompt: str,
    target: str,
    image: Any = None,
    editor: str = "unike",
    anchors: Anchors | None = None,
    **settings: Any,
) -> Edit:
    """Make one edit; the model is left as it was.

    Args:
        model: From `unike.load_backbone`.
        prompt: The question that is answered wrongly.
        target: The answer it should get.
        image: The picture it is about, as `picture` takes it, or None.
        editor: Name of a method, see ``unike ls editors``.
        anchors: Questions to leave alone; None for `default_anchors`.
        **settings: Of the editor's config.

    Returns:
        The edit; ``with edit.attached(model): ...`` puts it on.

    Raises:
        UnikeError: Bad input, with what is wrong and what to do.
    """
    fact = Query(prompt, picture(image), target)
    return make_editor(editor, anchors=anchors, **settings).edit(model, fact)
