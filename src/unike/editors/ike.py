"""IKE: in-context knowledge editing (Zheng et al., arXiv 2305.12740; the paper's appendix D.2). Nothing is trained.

The edited fact is put before every question, behind demonstrations of what that means: facts of a train split that say
something similar, each with its own question again (copy), in other words (update), or with an unrelated question whose
answer stays (retain)::

    New Fact: {prompt} {target}        } the nearest facts of the pool, nearest last,
    Prompt: {question}{cue} {answer}   } each with one of the three kinds of questions

    New Fact: {prompt} {target}        } the edited fact, copied
    Prompt: {prompt}{cue} {target}

    New Fact: {prompt} {target}
    Prompt: {question}{cue}            } what is asked

The cue is what the backbone's template puts behind a question, such as ``Short answer:``; the original has none. A
demonstration without it would end otherwise than the question does, and show an answer where none is wanted. The same
text stands before questions that have nothing to do with the fact. Demonstrations are text; the picture is that of the
question asked.

Note:
    Meaningless in sequential editing: one fact is new at a time, and the paper leaves it out, too.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import target_positions
from unike.backbones.forward.split import SplitState
from unike.core.errors import UnikeError
from unike.core.images import load_image
from unike.data.leaks import Trace
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.editors.common.demonstrations import COPY, RETAIN, UPDATE, Pool, asked_under, demonstration, pool_of, stated
from unike.editors.common.sentence_encoder import MINILM, not_shipped
from unike.edits.edit import Edit, EditorConfig
from unike.edits.edited import EditedModel
from unike.edits.layout import FINGERPRINT, Layout, declared
from unike.edits.routing import RoutingEdit

ROOM = 0.75
"""The part of what a model reads that demonstrations may take; the rest is for picture, question and answer."""


class IKEConfig(EditorConfig):
    """Settings of `IKE`.

    Attributes:
        encoder: Of facts: a folder or hub id that `sentence-transformers` reads.
        pool: The data set whose train split demonstrations come from, or one of its tasks.
        pool_folder: Folder of its files, if it does not ship with the package.
        pool_size: Use only so many of its facts, evenly spread; None for all.
        n_copy: Demonstrations that ask the fact's own question.
        n_update: Demonstrations that ask it in other words.
        n_retain: Demonstrations that ask something unrelated.
        max_prompt_tokens: The longest text before the question; the least similar demonstrations are left out of a
            longer one. None for `ROOM` of what the backbone reads.
        seed: Of the order of the three kinds.
    """

    PLACES: ClassVar[tuple[str, ...]] = ("pool_folder",)

    encoder: str = MINILM
    pool: str = "pocket"
    pool_folder: str | None = None
    pool_size: int | None = Field(None, ge=1)
    n_copy: int = Field(3, ge=0)
    n_update: int = Field(12, ge=0)
    n_retain: int = Field(17, ge=0)
    max_prompt_tokens: int | None = Field(None, ge=1)
    seed: int = 0

    @property
    def kinds(self) -> list[str]:
        """The kind of each demonstration, that of the nearest fact first."""
        kinds = [COPY] * self.n_copy + [UPDATE] * self.n_update + [RETAIN] * self.n_retain
        return random.Random(self.seed).sample(kinds, len(kinds))

    def encoders(self) -> tuple[str, ...]:
        """As in `EditorConfig`."""
        return not_shipped(self.encoder)

    def read_pool(self) -> Pool:
        """The pool, read once in a process."""
        return pool_of(self.pool, self.pool_folder, self.pool_size)


class IKEEdit(RoutingEdit):
    """``demonstrations [B, K]``, facts of the pool, nearest first, and ``pool [B, 8]`` uint8, its fingerprint."""

    editor = "ike"
    config_class = IKEConfig

    @classmethod
    def layout(cls, config: IKEConfig, names: Collection[str]) -> Layout:
        """Which demonstrations, of which pool; K is less than there are kinds if the pool is small, and may be none."""
        return {"demonstrations": declared("K", dtype=torch.int64), "pool": FINGERPRINT}

    @classmethod
    def rewritten(cls, edits: Sequence[Edit], backbone: Backbone, queries: Sequence[Query]) -> list[Query]:
        """The queries with demonstrations and the fact before them; targets stay what they are.

        Raises:
            UnikeError: The stack has several edits, or was made with another pool.
        """
        cls.check_stack(edits, backbone)
        if not edits:
            return list(queries)
        if len(edits) > 1:
            raise UnikeError(f"'ike' puts one new fact before a question, and {len(edits)} are given; use one of them")
        (edit,) = edits
        rows = edit.shared_out(len(queries))
        seen = [(row, query.image is not None) for row, query in zip(rows, queries, strict=True)]
        prefixes = {each: prefix(edit, each[0], backbone, pictured=each[1]) for each in dict.fromkeys(seen)}
        return [
            replace(query, prompt=prefixes[each] + asked_under(text_of(edit.facts[each[0]]), query.prompt))
            for each, query in zip(seen, queries, strict=True)
        ]

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
        read = cls.read(edits, model, queries)
        return model.replay(read, target_positions(read.labels)).logits

    @classmethod
    def read(
        cls, edits: Sequence[Edit], model: EditedModel, queries: Sequence[Query], *, whole: bool = False
    ) -> SplitState:
        """The rewritten queries with their targets, up to the first layer or, unless ``whole``, up to the question.

        Of those about one picture the demonstrations are read once: they are long, and all the same.
        """
        backbone = model.backbone
        rewritten = cls.rewritten(edits, backbone, queries)
        batch = backbone.encode(rewritten)
        state = backbone.run_to_split(batch, 0, model.stack)
        start = None if whole else common_length(batch.inputs["input_ids"], [query.image for query in rewritten])
        return state if start is None else backbone.shorten(state, start, model.stack)


def common_length(ids: Tensor, images: Sequence[Path | None]) -> int | None:
    """How many tokens rows about one picture begin with in common, whichever picture; None if no two share one.

    Args:
        ids: ``[B, S]``.
        images: Of each row.
    """
    first: dict[Path | None, int] = {}
    leaders = [first.setdefault(image, row) for row, image in enumerate(images)]
    others = [row for row, leader in enumerate(leaders) if row != leader]
    if not others:
        return None
    return int((ids[others] == ids[[leaders[row] for row in others]]).long().cumprod(dim=1).sum(dim=1).min())


def text_of(fact: Query) -> str:
    """An edited fact in one line."""
    return stated(fact.prompt, fact.target or "")


def prefix(edit: Edit, row: int, backbone: Backbone, *, pictured: bool) -> str:
    """What stands before every question: as many demonstrations as there is room for, and the edit's own.

    Args:
        edit: Of B facts.
        row: Which of them.
        backbone: What reads it.
        pictured: Whether the question has a picture; a template may end otherwise without one.

    Raises:
        UnikeError: The edit was made with another pool.
    """
    config, fact = cast(IKEConfig, edit.config), edit.facts[row]
    pool = config.read_pool()
    if not torch.equal(edit.tensors["pool"][row].cpu(), pool.fingerprint):
        raise UnikeError(
            f"the edit {fact.prompt!r} was made with other demonstrations than {config.pool!r} has now; make it anew"
        )
    chosen = edit.tensors["demonstrations"][row].tolist()
    if not all(0 <= index < len(pool.facts) for index in chosen):
        raise UnikeError(f"the edit {fact.prompt!r} has demonstrations that {config.pool!r} does not; make it anew")
    nearest = zip(chosen, config.kinds, strict=False)  # a small pool has fewer
    cue = backbone.cue(pictured)
    texts = [demonstration(text_of(fact), fact.prompt, fact.target or "", cue)]
    texts += [pool.facts[index].demonstration(kind, cue) for index, kind in nearest]
    lengths = torch.tensor([len(ids) for ids in backbone.tokenizer(texts, add_special_tokens=False)["input_ids"]])
    fitting = int((lengths.cumsum(0) <= limit(config, backbone)).sum())
    return "".join(reversed(texts[: max(fitting, 1)]))  # the fact itself is never left out


def limit(config: IKEConfig, backbone: Backbone) -> float:
    """How many tokens may stand before the question."""
    if config.max_prompt_tokens is not None:
        return config.max_prompt_tokens
    readable = getattr(backbone.text_config, "max_position_embeddings", None)
    return float("inf") if readable is None else ROOM * readable


class IKE(Editor[IKEConfig]):
    """Puts the fact before every question, behind demonstrations of what an edit does."""

    name: ClassVar[str] = "ike"
    config_class = IKEConfig
    edit_class = IKEEdit
    sequential: ClassVar[bool] = False

    def prepare(self, backbone: Backbone) -> None:
        """Embed the pool."""
        self.config.read_pool().embed(self.config.encoder, str(backbone.device))

    def learned_from(self, backbone: Backbone) -> Sequence[Trace]:
        """The questions of the pool."""
        return self.config.read_pool().traces

    def learned(self, backbone: Backbone) -> str:
        """The fingerprint of the pool."""
        return bytes(self.config.read_pool().fingerprint.tolist()).hex()

    def check(self, backbone: Backbone, fact: Query) -> None:
        """As for every method, though the fact's own picture is only read with a question about it."""
        super().check(backbone, fact)
        if fact.image is not None:
            load_image(fact.image)

    def lowest_layer(self, backbone: Backbone) -> None:
        """No layer: the whole model reads another question."""

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """Find the facts of the pool that are most like these."""
        config, pool = self.config, self.config.read_pool()
        nearest = pool.nearest(facts, len(config.kinds), config.encoder, str(backbone.device))
        return {"demonstrations": nearest, "pool": pool.fingerprint.repeat(len(facts), 1)}
