"""Retrieval prompt: a control that puts the nearest stored fact before the question (multimodal RAG).

Facts are found as in the answer cache, by what question and picture look like, but the model reads the fact and answers
by itself. A model that reads well may so use facts that are only akin to the question, hence the looser thresholds.

Note:
    Of a fact only the text is put before the question: the backbones here read one picture a question.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.split import SplitState
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.editors.common.retrieval import FOUND_BY, RetrievalSettings, embed, nearest_facts
from unike.editors.common.sentence_encoder import sentence_encoder
from unike.edits.edit import Edit, EditorConfig
from unike.edits.edited import EditedModel
from unike.edits.layout import Layout
from unike.edits.routing import RoutingEdit

TEMPLATE = "{fact} {target}\n{question}"
"""What stands where the question stood, within the backbone's own template."""


class RetrievalPromptConfig(RetrievalSettings, EditorConfig):
    """Settings of `RetrievalPrompt`, those of `RetrievalSettings`; thresholds were chosen on PocketEdit's dev split."""

    text_threshold: float = Field(0.3, ge=-1, le=1)
    image_threshold: float = Field(0.5, ge=-1, le=1)


class RetrievalPromptEdit(RoutingEdit):
    """What the fact is found by: ``text [B, W]`` and ``image [B, D]``. Its text is the fact's own."""

    editor = "retrieval_prompt"
    tells_scope = True
    config_class = RetrievalPromptConfig

    @classmethod
    def layout(cls, config: RetrievalPromptConfig, names: Collection[str]) -> Layout:
        """What the fact is found by."""
        return FOUND_BY

    @classmethod
    def rewritten(cls, edits: Sequence[Edit], backbone: Backbone, queries: Sequence[Query]) -> list[Query]:
        """The queries, those that a stored fact is near to with that fact before them; targets stay what they are."""
        cls.check_stack(edits, backbone)
        if not edits:
            return list(queries)
        facts = nearest_facts(edits, backbone, queries, cast(RetrievalPromptConfig, edits[0].config))
        return [
            query if fact is None else replace(query, prompt=with_fact(fact, query.prompt))
            for query, fact in zip(queries, facts, strict=True)
        ]

    @classmethod
    def in_scope(cls, edits: Sequence[Edit], backbone: Backbone, queries: Sequence[Query]) -> list[bool]:
        """Those that a fact is put before."""
        rewritten = cls.rewritten(edits, backbone, queries)
        return [new is not query for new, query in zip(rewritten, queries, strict=True)]

    @classmethod
    def answer(cls, edits: Sequence[Edit], model: EditedModel, queries: Sequence[Query], **kwargs: Any) -> list[str]:
        """What the model answers to the rewritten queries."""
        return model.generate(cls.rewritten(edits, model.backbone, queries), **kwargs)

    @classmethod
    @torch.no_grad()
    def target_logits(
        cls, edits: Sequence[Edit], model: EditedModel, queries: Sequence[Query], state: SplitState | None = None
    ) -> Tensor:
        """Logits of the targets behind the rewritten queries; a state of the queries as they were is of no use."""
        return model.target_logits(cls.rewritten(edits, model.backbone, queries))


def with_fact(fact: Query, question: str) -> str:
    """A question behind a fact."""
    return TEMPLATE.format(fact=fact.prompt.strip(), target=(fact.target or "").strip(), question=question.strip())


class RetrievalPrompt(Editor[RetrievalPromptConfig]):
    """Puts the nearest stored fact before the question, if it is near enough."""

    name: ClassVar[str] = "retrieval_prompt"
    config_class = RetrievalPromptConfig
    edit_class = RetrievalPromptEdit

    def prepare(self, backbone: Backbone) -> None:
        """Load the encoder."""
        sentence_encoder(self.config.encoder, str(backbone.device))

    def lowest_layer(self, backbone: Backbone) -> None:
        """No layer: the whole model reads another question."""

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """Embed the questions and pictures."""
        return embed(backbone, facts, self.config.encoder)
