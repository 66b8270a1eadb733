"""A benchmark in miniature: cases, and editors that do what edits may do, at no cost."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from tinies import tiny_backbone
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import token_nll
from unike.backbones.forward.split import SplitState
from unike.data.queries import EditCase, Probe, Query
from unike.editors.base import Editor
from unike.editors.common.optimise import optimise
from unike.editors.ft import FTConfig, FTEdit
from unike.edits.edit import Edit, EditorConfig
from unike.edits.edited import EditedModel
from unike.edits.routing import RoutingEdit


def case(number: int, pictures: list[Path]) -> EditCase:
    """A case with every kind of probe; several have no picture or no gold answer."""
    picture, other = pictures[number % 3], pictures[(number + 1) % 3]
    target = ("a cat", "red", "bob")[number % 3]
    probes = [
        Probe("t_generality", Query(f"So, what is number {number}?", picture, target)),
        Probe("m_generality", Query(f"What is {number}?", other, target)),
        Probe("t_locality", Query(f"{number} + 1?", None, str(number + 1))),
        Probe("m_locality", Query("How big?", other, "tiny")),
        Probe("near_locality", Query(f"What is {number}?", pictures[(number + 2) % 3], "dan")),
        Probe("portability", Query(f"And who is {number}?", picture, "not that")),
        Probe("specificity", Query("Where is it?", picture, None)),
    ]
    return EditCase(f"case-{number}", Query(f"What is {number}?", picture, target), tuple(probes), domain="photo")


def paint_gallery(folder: Path) -> list[Path]:
    """Twelve pictures that nobody would mix up."""
    generator = torch.Generator().manual_seed(1)
    for number in range(10, 22):
        pixels = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def learned_cases(gallery: list[Path]) -> list[EditCase]:
    """About eight pictures, so that what all ask says nothing about one of them."""
    return [case(number, [gallery[(number + i) % 8] for i in range(3)]) for number in range(6)]


def judged_cases(gallery: list[Path]) -> list[EditCase]:
    """About others."""
    return [case(number, gallery[8:11]) for number in range(20, 23)]


def teach(cases: Sequence[EditCase]) -> Backbone:
    """A tiny model that answers the cases' questions, most of them wrongly, and stops.

    Random models babble up to the limit, so nothing would tell an answer that ends from one that is cut off.
    """
    backbone = tiny_backbone("llava")
    said = {"How big?": "tiny", "Where is it?": "a\nb"} | {f"{number} + 1?": "six" for number in range(len(cases))}
    asked = [query for c in cases for query in [c.edit, *(probe.query for probe in c.probes)]]
    lines = [replace(query, target=said.get(query.prompt, "tin bat")) for query in dict.fromkeys(asked)]
    batch = backbone.encode(lines)
    weights = [w for layer in (-1, -2) for m in backbone.ffn(layer).matrices.values() for w in m.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    optimise(weights, lambda: token_nll(backbone.forward(batch), batch.labels), steps=50, lr=1e-2)
    for weight in weights:
        weight.requires_grad_(False).grad = None
    return backbone


class Scatter(Editor[FTConfig]):
    """Random changes of the last layer, as large as ``lr``: what an edit may do to a model, good or bad."""

    name = "scatter"
    config_class = FTConfig
    edit_class = FTEdit

    def lowest_layer(self, backbone: Backbone) -> int:
        return backbone.layer_index(-1)

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for fact in facts:
            generator = torch.Generator().manual_seed(zlib.crc32(fact.prompt.encode()))
            for name, linear in backbone.ffn(-1).matrices.items():
                noise = torch.randn(linear.weight.shape, generator=generator)
                found.setdefault(name, []).append(self.config.lr * noise)
        return {name: torch.stack(rows) for name, rows in found.items()}


class Prefixed(RoutingEdit):
    """What a method does that rewrites questions: the edited fact is put in front of each."""

    editor = "prefix"
    config_class = EditorConfig
    asked: ClassVar[list[Query]] = []

    @classmethod
    def rewritten(cls, edits: Sequence[Edit], queries: Sequence[Query]) -> list[Query]:
        facts = "".join(f"New fact: {fact.prompt} {fact.target}\n" for edit in edits for fact in edit.facts)
        return [replace(query, prompt=facts + query.prompt) for query in queries]

    @classmethod
    def answer(cls, edits: Sequence[Edit], model: EditedModel, queries: Sequence[Query], **kwargs: Any) -> list[str]:
        cls.asked += queries
        return model.generate(cls.rewritten(edits, queries), **kwargs)

    @classmethod
    def target_logits(
        cls, edits: Sequence[Edit], model: EditedModel, queries: Sequence[Query], state: SplitState | None = None
    ) -> Tensor:
        assert state is None, "a rewritten question has another state"
        return model.target_logits(cls.rewritten(edits, queries))


class Prefix(Editor[EditorConfig]):
    """Makes `Prefixed`."""

    name = "prefix"
    config_class = EditorConfig
    edit_class = Prefixed

    def lowest_layer(self, backbone: Backbone) -> None:
        return None

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        return {}
