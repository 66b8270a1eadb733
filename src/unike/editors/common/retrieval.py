"""Finding the stored fact that a question is about: the nearest one by text and by picture, if near enough.

What a method stores of a fact are two unit vectors, of its question and of its picture (`sentence_encoder`). The answer
takes no part in either, so what the answer to a question should be cannot tell whether a fact is found for it.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.core.settings import Settings
from unike.data.queries import Query
from unike.editors.common.sentence_encoder import MINILM, embed_images, not_shipped, sentence_encoder
from unike.edits.layout import WIDTH, declared

TEXT, IMAGE = "text", "image"
"""Names of the tensors."""

FOUND_BY = {TEXT: declared("W"), IMAGE: declared(WIDTH)}
"""What an edit has of them: vectors of the encoder's width, and of the decoder's."""


class RetrievalSettings(Settings):
    """When a question is about a stored fact.

    Attributes:
        encoder: Of texts: a folder or hub id that `sentence-transformers` reads.
        text_threshold: The least cosine of the two questions.
        image_threshold: The least cosine of the two pictures. A question with a picture is never about a fact without
            one, nor the other way round.
    """

    encoder: str = MINILM
    text_threshold: float = Field(ge=-1, le=1)
    image_threshold: float = Field(ge=-1, le=1)

    def encoders(self) -> tuple[str, ...]:
        """As in `EditorConfig`."""
        return not_shipped(self.encoder)


class Stored(Protocol):
    """B independent facts, and what they are found by: ``text [B, W]`` and ``image [B, D]``."""

    tensors: Mapping[str, Tensor]
    facts: tuple[Query, ...]

    def shared_out(self, rows: int) -> list[int]:
        """Which of the B facts each of several rows sees."""
        ...


def embed(backbone: Backbone, queries: Sequence[Query], encoder: str) -> dict[str, Tensor]:
    """What queries are found by, ``text [n, W]`` and ``image [n, D]`` fp32; targets are not looked at.

    Raises:
        UnikeError: There is no such encoder, or a picture cannot be read.
    """
    texts = sentence_encoder(encoder, str(backbone.device)).embed([query.prompt for query in queries])
    return {TEXT: texts, IMAGE: embed_images(backbone, [query.image for query in queries])}


def nearest_facts(
    stack: Sequence[Stored], backbone: Backbone, queries: Sequence[Query], settings: RetrievalSettings
) -> list[Query | None]:
    """The fact each of R queries is about: of those above both thresholds the one with the largest sum of cosines.

    Args:
        stack: E edits, each of one fact that every query sees, or of several that are shared out among the queries.
        backbone: What reads the pictures.
        queries: Their targets are not looked at.
        settings: The encoder and the thresholds.

    Raises:
        UnikeError: The queries cannot be shared out evenly, or a picture cannot be read.
    """
    if not stack or not queries:
        return [None] * len(queries)
    rows = [edit.shared_out(len(queries)) for edit in stack]
    facts = [[edit.facts[seen[row]] for edit, seen in zip(stack, rows, strict=True)] for row in range(len(queries))]
    asked = embed(backbone, queries, settings.encoder)
    check_widths(stack, asked)
    stored = {
        name: torch.stack(
            [edit.tensors[name].to(backbone.device)[seen] for edit, seen in zip(stack, rows, strict=True)]
        )
        for name in asked
    }
    best = scores(asked, stored, settings).max(dim=1)
    found = zip(facts, best.indices.tolist(), best.values.isfinite().tolist(), strict=True)
    return [seen[nearest] if near else None for seen, nearest, near in found]


def check_widths(stack: Sequence[Stored], asked: dict[str, Tensor]) -> None:
    """Refuse facts that another encoder has read.

    Raises:
        UnikeError: Their vectors are not as long as those of what is asked.
    """
    for edit in stack:
        for name, vectors in asked.items():
            there, here = edit.tensors[name].shape[-1], vectors.shape[-1]
            if there != here:
                raise UnikeError(
                    f"the edit {edit.facts[0].prompt!r} was made with another encoder: {name} has {there} numbers, not "
                    f"{here}; make it anew"
                )


def scores(asked: dict[str, Tensor], stored: dict[str, Tensor], settings: RetrievalSettings) -> Tensor:
    """How near R queries are to E facts each.

    Args:
        asked: As `embed` returns it for the queries, ``[R, ...]``.
        stored: The same of the facts that each query sees, ``[E, R, ...]``.
        settings: The thresholds.

    Returns:
        ``[R, E]``, the sum of both cosines; minus infinity for a fact that the query is not about.
    """
    text, image = (torch.einsum("rd,erd->re", asked[name], stored[name]) for name in (TEXT, IMAGE))
    shown, pictured = asked[IMAGE].any(dim=-1).unsqueeze(1), stored[IMAGE].any(dim=-1).T
    image = torch.where(shown | pictured, image, 1.0)  # two questions without a picture do not differ in it
    near = (shown == pictured) & (text >= settings.text_threshold) & (image >= settings.image_threshold)
    return torch.where(near, text + image, -torch.inf)
