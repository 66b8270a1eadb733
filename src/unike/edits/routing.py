"""Edits of methods that do not act within the model, but rewrite or route a question before the model reads it."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.hooks import Hooks
from unike.backbones.forward.split import SplitState
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.edits.edit import Edit, alike
from unike.edits.group import Group
from unike.edits.stack import check_fit

if TYPE_CHECKING:
    from unike.edits.edited import EditedModel


class RoutingEdit(Edit):
    """An edit that changes what is asked, or who answers; asked through an `EditedModel`, as all are."""

    tells_scope: ClassVar[bool] = False
    """Whether `in_scope` knows better than that every question is."""

    def check_attachable(self) -> None:
        """Refuse: with hooks alone it would do nothing.

        Raises:
            UnikeError: Always.
        """
        raise UnikeError(
            f"{self.editor!r} does not act within the model, so its edits cannot be attached; "
            "ask through EditedModel(model, edits)"
        )

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        """As `check_attachable`."""
        self.check_attachable()

    @classmethod
    def check_stack(cls, edits: Sequence[Edit], backbone: Backbone) -> None:
        """Refuse a stack that does not fit a backbone or whose edits do not fit each other.

        Raises:
            UnikeError: As `check_fits`; or they were made with different settings.
        """
        check_fit(backbone, edits)
        if len({common.config for common in alike(edits)}) > 1:
            raise UnikeError(f"edits of {cls.editor!r} act together only with the same settings; make them anew")

    @classmethod
    @abstractmethod
    def answer(cls, edits: Sequence[Edit], model: "EditedModel", queries: Sequence[Query], **kwargs: Any) -> list[str]:
        """Answer queries under a stack of edits of this method.

        Args:
            edits: Oldest first.
            model: Under whatever else is in force.
            queries: Their targets are not looked at.
            **kwargs: As in `Backbone.generate`.
        """

    @classmethod
    @abstractmethod
    def target_logits(
        cls,
        edits: Sequence[Edit],
        model: "EditedModel",
        queries: Sequence[Query],
        state: SplitState | None = None,
    ) -> Tensor:
        """Teacher-forced logits of the queries' targets, see `EditedModel.target_logits`."""

    @classmethod
    def in_scope(cls, edits: Sequence[Edit], backbone: Backbone, queries: Sequence[Query]) -> list[bool]:
        """Which queries do not simply reach the model as they are: all, unless a method knows better.

        To the others the answer, and every logit, is the unedited model's.
        """
        return [True] * len(queries)

    @classmethod
    def calls(cls, group: Group, queries: Sequence[Query]) -> Tensor | None:
        """1 where a question would be in scope of an edit alone; None for a method that takes all to be."""
        if not cls.tells_scope:
            return None
        return torch.tensor([cls.in_scope([edit], group.backbone, queries) for edit in group.made]).T.float()

    @classmethod
    def reads_targets(cls, edits: Sequence[Edit]) -> bool:
        """Whether a query's target decides where it goes: then nothing about answers follows from reading targets."""
        return False
