"""Forty pictures, what they show, and a tiny model whose answers to that are scripted: a random one is never clearly
wrong.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import trace
from unike.data.queries import EditCase, Probe, Query
from unike.editors.unike.memory import read_entries
from unike.editors.unike.prepare.config import PrepareConfig

FAST = {
    "layers": (-2, -1),
    "hidden": 8,
    "truth_width": 4,
    "max_epochs": 3,
    "batch": 8,
    "rows": 16,
    "store_dtype": "float32",
    "gate_hands": 2,
    "gate_steps": 5,
}
CONFIG = PrepareConfig(**FAST)

ANSWERS = ("cat", "dog", "cow", "pig", "hen", "fox", "bee", "owl")
QUESTION = "What is this?"


def paint(path: Path, seed: int, **kwargs: Any) -> Path:
    pixels = torch.randint(0, 256, (3, 3, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).resize((48, 48)).save(path, **kwargs)
    return path


def paint_gallery(folder: Path) -> list[Path]:
    """Forty pictures, no two alike."""
    return [paint(folder / f"{number}.png", number) for number in range(40)]


def cases_about(gallery: list[Path]) -> list[EditCase]:
    """What forty pictures show, and forty questions without a picture, of which ten are different."""
    return [
        EditCase(
            f"case-{i}",
            Query(QUESTION, picture, ANSWERS[i % 8]),
            (Probe("t_locality", Query(f"What is {i % 10} + 1?")), Probe("t_generality", Query("And this?", picture))),
        )
        for i, picture in enumerate(gallery)
    ]


class Scripted:
    """Stands in for ``backbone.generate``: wrong about every picture but each tenth, and counting."""

    def __init__(self, say: Callable[[Query], str] | None = None) -> None:
        self.asked: list[Query] = []
        self.say = say or self.usual

    def __call__(self, queries: Sequence[Query], *, max_new_tokens: int) -> list[str]:
        self.asked += queries
        return [self.say(query) for query in queries]

    def usual(self, query: Query) -> str:
        assert query.image is not None
        number = int(query.image.stem)
        return ANSWERS[number % 8 if number % 10 == 0 else (number * 3 + 1) % 8 - 1]


def asked(backbone: Backbone) -> list[Query]:
    return backbone.generate.asked  # type: ignore[attr-defined]


def alone(backbone: Backbone, query: Query, layer: int) -> dict[str, Tensor]:
    """The states of one question by itself, ``[D]`` each."""
    state = backbone.run_to_split(backbone.encode([query]), layer)
    with trace([backbone.attention(layer).module, backbone.ffn(layer).outputs]) as (attention, network):
        backbone.run_from_split(state)
    p, last = int(state.prompt_last), -2 if query.target else -1  # the end-of-sequence token comes behind a target
    if query.target:
        (h_sem, h_answer), *_ = read_entries(backbone, state, [layer]).values()
        assert torch.allclose(attention.input[0, p], h_sem[0, 0]) and torch.allclose(
            attention.input[0, last], h_answer[0, 0]
        )
    return {
        "in_p": attention.input[0, p],
        "in": attention.input[0, last],
        "out": attention.output[0][0, last],
        "ffn": network.output.reshape(state.hidden.shape)[0, last],
    }
