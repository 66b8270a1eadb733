"""Answer cache: a control without any learning, which a claim about editing should beat.

Every edit stores what its question and picture look like and its target. A question that is near enough to a stored one
is answered with the stored target, word for word; any other by the model itself.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import target_tokens
from unike.backbones.forward.split import SplitState
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.editors.common.retrieval import FOUND_BY, RetrievalSettings, embed, nearest_facts
from unike.editors.common.sentence_encoder import sentence_encoder
from unike.edits.edit import Edit, EditorConfig
from unike.edits.edited import EditedModel
from unike.edits.layout import Layout
from unike.edits.routing import RoutingEdit

CERTAIN = 100.0
"""Logit of a token of a cached answer, where those of all others are 0: large enough, and no loss is infinite."""


class AnswerCacheConfig(RetrievalSettings, EditorConfig):
    """Settings of `AnswerCache`, those of `RetrievalSettings`; thresholds were chosen on PocketEdit's dev split."""

    text_threshold: float = Field(0.35, ge=-1, le=1)
    image_threshold: float = Field(0.55, ge=-1, le=1)


class AnswerCacheEdit(RoutingEdit):
    """What the fact is found by: ``text [B, W]`` and ``image [B, D]``. Its target is the fact's own."""

    editor = "answer_cache"
    tells_scope = True
    config_class = AnswerCacheConfig

    @classmethod
    def layout(cls, config: AnswerCacheConfig, names: Collection[str]) -> Layout:
        """What the fact is found by."""
        return FOUND_BY

    @classmethod
    def cached(cls, edits: Sequence[Edit], backbone: Backbone, queries: Sequence[Query]) -> dict[int, str]:
        """The cached answers, by the number of the query; queries that are not named have none."""
        cls.check_stack(edits, backbone)
        if not edits:
            return {}
        facts = nearest_facts(edits, backbone, queries, cast(AnswerCacheConfig, edits[0].config))
        return {row: (fact.target or "").strip() for row, fact in enumerate(facts) if fact is not None}

    @classmethod
    def in_scope(cls, edits: Sequence[Edit], backbone: Backbone, queries: Sequence[Query]) -> list[bool]:
        """Those with a cached answer."""
        cached = cls.cached(edits, backbone, queries)
        return [row in cached for row in range(len(queries))]

    @classmethod
    def answer(cls, edits: Sequence[Edit], model: EditedModel, queries: Sequence[Query], **kwargs: Any) -> list[str]:
        """The cached answer where there is one, and the model's own otherwise."""
        cached = cls.cached(edits, model.backbone, queries)
        others = [row for row in range(len(queries)) if row not in cached]
        own = model.generate([queries[row] for row in others], **kwargs) if others else []
        answers = cached | dict(zip(others, own, strict=True))
        return [answers[row] for row in range(len(queries))]

    @classmethod
    @torch.no_grad()
    def target_logits(
        cls, edits: Sequence[Edit], model: EditedModel, queries: Sequence[Query], state: SplitState | None = None
    ) -> Tensor:
        """The model's own logits, but where an answer is cached those that say it, whatever came before.

        There, the i-th position has `CERTAIN` for the i-th token of the cached answer and 0 for all others; positions
        behind its end repeat its last token, which is the end of the sequence if the backbone's targets have one.
        """
        backbone = model.backbone
        logits = model.target_logits(queries)
        position_of, _ = target_tokens(backbone.encode(queries).labels)
        for row, answer in cls.cached(edits, backbone, queries).items():
            said = target_tokens(backbone.encode([replace(queries[row], target=answer)]).labels)[1]
            where = (position_of == row).nonzero().flatten()
            tokens = said[torch.arange(len(where), device=said.device).clamp(max=len(said) - 1)]
            logits[where] = 0
            logits[where, tokens] = CERTAIN
        return logits


class AnswerCache(Editor[AnswerCacheConfig]):
    """Returns the stored answer of the nearest fact, if it is near enough."""

    name: ClassVar[str] = "answer_cache"
    config_class = AnswerCacheConfig
    edit_class = AnswerCacheEdit

    def prepare(self, backbone: Backbone) -> None:
        """Load the encoder."""
        sentence_encoder(self.config.encoder, str(backbone.device))

    def lowest_layer(self, backbone: Backbone) -> None:
        """No layer: the model is asked or it is not."""

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """Embed the questions and pictures."""
        return embed(backbone, facts, self.config.encoder)
