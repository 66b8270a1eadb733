"""No edit: the control that says what a score is worth, measured as every method is.

Cases that a model gets right by itself are left out of a benchmark, so all whole answers of the unedited model to the
edited questions are wrong. Scored by token they are not, and answers to rephrased questions may be right: what tables
call the backbone's row is measured, not known.
"""

from collections.abc import Collection
from typing import Any, ClassVar

from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.hooks import Hooks
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.edits.edit import Edit, EditorConfig
from unike.edits.layout import Layout


class NoEditConfig(EditorConfig):
    """There is nothing to set."""


class NoEditEdit(Edit):
    """A fact without a tensor: it changes nothing."""

    editor = "no_edit"
    config_class = NoEditConfig

    @classmethod
    def layout(cls, config: Any, names: Collection[str]) -> Layout:
        """None."""
        return {}

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        """Leave the model as it is."""


class NoEdit(Editor[NoEditConfig]):
    """Leaves the model as it is: a control, which says what scores the unedited model has."""

    name: ClassVar[str] = "no_edit"
    config_class = NoEditConfig
    edit_class = NoEditEdit

    @property
    def keeps_prefix(self) -> bool:
        """It keeps everything."""
        return True

    def lowest_layer(self, backbone: Backbone) -> int:
        """The last one, so that all below is computed once."""
        return backbone.n_layers - 1

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """Nothing."""
        return {}
