"""What editing methods share: a frozen config and a pure ``edit``.

An editor never changes the backbone. It returns an `Edit`, a few tensors with what they mean; a model is asked under it
through `EditedModel`::

    edit = editor.edit(backbone, fact)
    EditedModel(backbone, [edit]).ask(image, prompt)
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.given import given_queries, shown
from unike.core.errors import UnikeError
from unike.core.progress import Progress, silent
from unike.data.leaks import Trace
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors
from unike.edits.edit import Edit, EditorConfig
from unike.edits.edited import EditedModel
from unike.edits.given import given_model
from unike.edits.stack import superseding

ConfigT = TypeVar("ConfigT", bound=EditorConfig)


class Editor(ABC, Generic[ConfigT]):
    """An editing method.

    Args:
        config: Its settings; keyword arguments make one.
        anchors: Unrelated inputs that an edit should leave alone, for methods that use them.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[EditorConfig]]
    edit_class: ClassVar[type[Edit]]
    sequential: ClassVar[bool] = True
    """Whether several edits can be in force at once."""

    def __init__(self, config: ConfigT | None = None, *, anchors: Anchors | None = None, **settings: Any) -> None:
        if config is not None and not isinstance(config, self.config_class):
            raise UnikeError(f"the settings of {self.name!r} are a {self.config_class.__name__}, not {shown(config)}")
        if anchors is not None and not isinstance(anchors, Anchors):
            raise UnikeError(f"anchors are Anchors([Query(...), ...]), not {shown(anchors)}")
        self.config: ConfigT = config if config is not None else self.config_class.parse(settings)  # type: ignore[assignment]
        self.anchors = anchors
        self.progress: Progress = silent
        """Told what is read before the first edit."""

    @property
    def keeps_prefix(self) -> bool:
        """Whether an edit leaves what is read before a prompt's last token as it is, at every layer."""
        return False

    def prepare(self, backbone: Backbone) -> None:
        """Read what does not depend on the facts, so that the first edit takes no longer than the next; optional."""

    def learned_from(self, backbone: Backbone) -> Sequence[Trace]:
        """What the method learned from before its first edit; the bench refuses what it is to be evaluated on."""
        return ()

    @property
    def uses_anchors(self) -> bool:
        """Whether the anchors, if it has any, shape its edits."""
        return False

    def learned(self, backbone: Backbone) -> str | None:
        """A short hash of what the method learned before its first edit, if anything: its results depend on it."""
        return None

    def anchor_inputs(self, backbone: Backbone, layers: Sequence[int]) -> dict[int, Tensor]:
        """What the feed-forward networks of the unedited model read of the anchors, see `Anchors.ffn_inputs`.

        Older edits do not act meanwhile: to read all anchors anew for each edit of a sequence would take most of its
        time, and edits that stay silent where they should do not change them.

        Returns:
            ``[M, D]`` for each layer; nothing if there are no anchors.
        """
        return self.anchors.ffn_inputs(backbone, layers, self.progress) if self.anchors else {}

    def edit(self, backbone: Backbone | EditedModel, facts: Query | Sequence[Query]) -> Edit:
        """Edit one fact, or several independent ones in one pass. The backbone is left as it was.

        Args:
            backbone: The model to edit, with or without older edits on top of which these are made.
            facts: Queries with a target.

        Raises:
            UnikeError: No fact, a prompt or target is empty or too long, or an image cannot be read.
        """
        if isinstance(backbone, EditedModel):
            with backbone.attached():
                return self.edit(backbone.backbone, facts)
        given_model(backbone)
        facts = given_queries(facts, "fact")
        if not facts:
            raise UnikeError("there is nothing to edit: no fact was given")
        for fact in facts:
            self.check(backbone, fact)
        facts = [replace(fact, also=()) for fact in facts]  # it makes the model say its target, whatever else is right
        with superseding(backbone, facts):
            tensors = {name: tensor.detach() for name, tensor in self.make(backbone, facts).items()}
        return self.edit_class(self.config, tensors, facts, fingerprint=backbone.fingerprint(), source=backbone.source)

    def check(self, backbone: Backbone, fact: Query) -> None:
        """Refuse a fact that cannot be edited.

        Raises:
            UnikeError: Its prompt or target is empty, or the target too long or no answer that can be given.
        """
        if not fact.prompt.strip():
            raise UnikeError("the prompt is empty; say which question is to be answered differently")
        if not fact.target or not fact.target.strip():
            raise UnikeError(f"the target for {fact.prompt!r} is empty; say what the answer should be")
        backbone.check_answer(fact.target)
        length = len(backbone.tokenizer(" " + fact.target.strip(), add_special_tokens=False)["input_ids"])
        if length > self.config.max_target_tokens:
            limit = self.config.max_target_tokens
            raise UnikeError(f"the target for {fact.prompt!r} has {length} tokens, the limit is {limit}; shorten it")

    @abstractmethod
    def lowest_layer(self, backbone: Backbone) -> int | None:
        """The lowest layer an edit acts on, counted from 0: what is below need not be computed twice.

        None for a method that does not act through hooks on the decoder, but makes `RoutingEdit`.
        """

    @abstractmethod
    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """Compute the edit's tensors, each ``[B, ...]``, for B checked facts."""
