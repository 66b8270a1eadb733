"""Intrin + IKE (Table 4, row 3): intrinsic editing and in-context editing side by side, without a common paradigm.

A fact is edited twice, by `unike` with its intrinsic half alone and by `ike`, each as if the other were not there. When
a question is asked, the new pairs are attached, and the model reads the demonstrations, the fact and the question.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import target_positions
from unike.backbones.forward.split import SplitState
from unike.core import registry
from unike.data.leaks import Trace
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.edits.edit import Edit, EditorConfig
from unike.edits.edited import EditedModel
from unike.edits.layout import Declared, Layout
from unike.edits.routing import RoutingEdit

INTRINSIC, IKE = "unike", "ike"
"""The halves; the names of their tensors begin with these."""


class IntrinsicIKEConfig(EditorConfig):
    """Settings of `IntrinsicIKE`.

    Attributes:
        intrinsic: Settings of `unike`, beside ``ablation``.
        ike: Settings of `ike`.
    """

    intrinsic: dict[str, Any] = Field(default_factory=dict)
    ike: dict[str, Any] = Field(default_factory=dict)

    @field_validator("intrinsic", "ike")
    @classmethod
    def _as_saved(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return dict(json.loads(json.dumps(settings)))  # a tuple comes back from a file as a list

    @model_validator(mode="after")
    def _settings_of_the_halves(self) -> "IntrinsicIKEConfig":
        self.half(INTRINSIC)
        self.half(IKE)
        return self

    def __hash__(self) -> int:
        """Of the content, for dictionaries have none."""
        return hash(json.dumps(self.model_dump(mode="json"), sort_keys=True))

    def encoders(self) -> tuple[str, ...]:
        """Those of the halves."""
        return self.half(INTRINSIC).encoders() + self.half(IKE).encoders()

    def half(self, name: str) -> EditorConfig:
        """The config of one of the halves.

        Raises:
            UnikeError: A setting that it does not have.
        """
        settings: dict[str, Any] = {"max_target_tokens": self.max_target_tokens}
        settings |= {"ablation": "only_intrinsic", **self.intrinsic} if name == INTRINSIC else self.ike
        config: EditorConfig = registry.editors.get(name).config_class.parse(settings)
        return config


class IntrinsicIKEEdit(RoutingEdit):
    """The tensors of both halves, as ``unike.{name}`` and ``ike.{name}``."""

    editor = "intrinsic_ike"
    config_class = IntrinsicIKEConfig

    @classmethod
    def layout(cls, config: IntrinsicIKEConfig, names: Collection[str]) -> Layout:
        """Those of both halves."""
        found: dict[str, Declared] = {}
        for name in (INTRINSIC, IKE):
            made_by: type[Edit] = registry.editors.get(name).edit_class
            found |= {f"{name}.{key}": each for key, each in (made_by.layout(config.half(name), ()) or {}).items()}
        return found

    def half(self, name: str) -> Edit:
        """The edit that one of the halves made."""
        assert isinstance(self.config, IntrinsicIKEConfig)
        made_by: type[Edit] = registry.editors.get(name).edit_class
        own = {key.removeprefix(f"{name}."): t for key, t in self.tensors.items() if key.startswith(f"{name}.")}
        config = self.config.half(name)
        return made_by(config, own, self.facts, fingerprint=self.fingerprint, source=self.source)

    @classmethod
    def answer(cls, edits: Sequence[Edit], model: EditedModel, queries: Sequence[Query], **kwargs: Any) -> list[str]:
        """What the model with the new pairs answers to the rewritten queries."""
        intrinsic, in_context = cls._halves(edits, model.backbone)
        below = EditedModel(model.backbone, [*model.edits, *intrinsic])
        return cls._in_context().answer(in_context, below, queries, **kwargs)

    @classmethod
    @torch.no_grad()
    def target_logits(
        cls, edits: Sequence[Edit], model: EditedModel, queries: Sequence[Query], state: SplitState | None = None
    ) -> Tensor:
        """Logits of the targets behind the rewritten queries, with the new pairs attached."""
        intrinsic, in_context = cls._halves(edits, model.backbone)
        read = cls._in_context().read(in_context, model, queries, whole=not cls._keep_prefix(intrinsic))
        below = EditedModel(model.backbone, [*model.edits, *intrinsic])
        return below.replay(read, target_positions(read.labels)).logits

    @staticmethod
    def _in_context() -> Any:
        return registry.editors.get(IKE).edit_class

    @staticmethod
    def _keep_prefix(intrinsic: Sequence[Edit]) -> bool:
        return all(registry.editors.get(INTRINSIC)(edit.config).keeps_prefix for edit in intrinsic)

    @classmethod
    def _halves(cls, edits: Sequence[Edit], backbone: Backbone) -> tuple[list[Edit], list[Edit]]:
        cls.check_stack(edits, backbone)
        both = [edit for edit in edits if isinstance(edit, cls)]
        return [edit.half(INTRINSIC) for edit in both], [edit.half(IKE) for edit in both]


class IntrinsicIKE(Editor[IntrinsicIKEConfig]):
    """New pairs in the feed-forward networks, and the fact with demonstrations before every question."""

    name: ClassVar[str] = "intrinsic_ike"
    config_class = IntrinsicIKEConfig
    edit_class = IntrinsicIKEEdit
    sequential: ClassVar[bool] = False

    def half(self, name: str) -> Editor[Any]:
        """One of the two editors."""
        editor: Editor[Any] = registry.editors.get(name)(self.config.half(name), anchors=self.anchors)
        editor.progress = self.progress
        return editor

    def prepare(self, backbone: Backbone) -> None:
        """What both halves read once."""
        self.half(INTRINSIC).prepare(backbone)
        self.half(IKE).prepare(backbone)

    def learned_from(self, backbone: Backbone) -> Sequence[Trace]:
        """What both halves learned from."""
        return [*self.half(INTRINSIC).learned_from(backbone), *self.half(IKE).learned_from(backbone)]

    def learned(self, backbone: Backbone) -> str | None:
        """The fingerprint of the demonstrations' pool; the pairs alone learn nothing."""
        return self.half(IKE).learned(backbone)

    @property
    def uses_anchors(self) -> bool:
        """As the pairs do."""
        return self.half(INTRINSIC).uses_anchors

    def check(self, backbone: Backbone, fact: Query) -> None:
        """As both halves do."""
        self.half(INTRINSIC).check(backbone, fact)
        self.half(IKE).check(backbone, fact)

    def lowest_layer(self, backbone: Backbone) -> None:
        """No layer: the whole model reads another question."""

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """The edits of both halves, made apart from each other."""
        return {
            f"{name}.{key}": tensor
            for name in (INTRINSIC, IKE)
            for key, tensor in self.half(name).make(backbone, facts).items()
        }
