"""What the tests of UniKE's parts share: drawn numbers, a gate, and edits with something in every tensor."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import SEEN, Acting, Prefill
from unike.backbones.forward.hooks import Hooks
from unike.data.queries import Query
from unike.editors.unike.asked import ASKED_WIDTH
from unike.editors.unike.config import UniKEConfig, merged
from unike.editors.unike.editor import UniKE, UniKEEdit
from unike.editors.unike.gate import Gate, RisingRamp, install_gate
from unike.editors.unike.likeness import KEPT, Reading
from unike.editors.unike.metric import Metric
from unike.editors.unike.words import NAMED_WIDTH
from unike.edits.edit import Edit
from unike.edits.group import Group

LAYERS = (-2, -1)
SETTINGS: dict[str, Any] = {
    "layers": LAYERS,
    "rounds": 1,
    "memory": {"entry": "last", "k": 5},
    "pairs": {"n": 4},
    "collaboration": {"alpha_slope": 0.7, "alpha_offset": 0.3},
}

Make = Callable[..., UniKE]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a * b).sum() / (a * a).sum().sqrt() / (b * b).sum().sqrt())


def named(settings: Mapping[str, Any]) -> str:
    """Settings as one word, to call a test by."""
    dotted = {
        f"{key}.{own}" if own else key: each
        for key, value in settings.items()
        for own, each in (value.items() if isinstance(value, dict) else [("", value)])
    }
    return ",".join(f"{key}={value}" for key, value in dotted.items()) or "default"


class Together:
    """Several that act in a pass, one after the other."""

    def __init__(self, *acting: Acting) -> None:
        self.acting = acting
        self.rows = max(each.rows for each in acting)

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        for each in self.acting:
            each.install(backbone, hooks, prefill)


# ---------------------------------------------------------------------- gates

WIDTH, FEATURES = 24, 20
"""Of what a drawn gate compares pictures by, and of visual features."""

SHOWN = SEEN * FEATURES
"""Of what pictures show."""

OPEN, CLOSED = RisingRamp((-9.0,), (-8.0,)), RisingRamp((8.0,), (9.0,))
"""Wherever a cosine may lie."""


def some_gate(**settings: Any) -> Gate:
    cohort = normalize(draw(30, WIDTH, seed=3), dim=1)
    chosen = {"metric": some_metric(), "cohort": cohort, "about": RisingRamp((-0.9, -0.5), (0.5, 0.6))}
    return Gate(**(chosen | settings))


def some_metric(features: int = FEATURES, width: int = WIDTH) -> Metric:
    """Half of it discriminant, half contrast."""
    halves = draw(2 * features, width // 2, seed=1), draw(SEEN * features, width // 2, seed=4)
    return Metric(draw(SEEN * features, seed=2), *halves)


def some_reading(*shape: int, seed: int = 0, pictured: bool = True) -> Reading:
    """Drawn, of edits or of inputs alike: what edits ask and say is what inputs do, too, to some degree."""
    picture = normalize(draw(*shape, WIDTH, seed=seed), dim=-1) * pictured
    asked = normalize(draw(ASKED_WIDTH, seed=99) + 0.8 * draw(*shape, ASKED_WIDTH, seed=seed + 1), dim=-1)
    said = (draw(*shape, NAMED_WIDTH, seed=seed + 2) > -0.6).float()
    rare = draw(*shape, NAMED_WIDTH, seed=seed + 3).relu() * said
    read = (picture, 0.2 * draw(*shape, 1, seed=seed + 4).abs() * pictured, asked, said)
    return Reading(*read, rare / rare.sum(dim=-1, keepdim=True))


def group_of(backbone: Backbone, keys: Reading, rivalry: float | None = None) -> Group:
    """G edits that have nothing but what the gate compares with, ``[B, G, n]`` each."""
    config = UniKEConfig.parse({"gate": {"rivalry": rivalry}})
    facts = [Query("What?")] * len(keys.asked)
    made_for = {"fingerprint": backbone.fingerprint(), "source": backbone.source}
    columns = zip(*(part.split(1, dim=1) for part in keys), strict=True)
    edits = [UniKEEdit(config, dict(zip(KEPT, column, strict=True)), facts, **made_for) for column in columns]
    return Group(backbone, edits)


def keys_of(backbone: Backbone, gate: Gate, queries: Sequence[Query]) -> Reading:
    kept = gate.keys(backbone, backbone.run_to_split(backbone.encode(queries), 0).prefill())
    return Reading(*(kept[name] for name in KEPT))


def read(backbone: Backbone, gate: Gate, queries: Sequence[Query]) -> Reading:
    return gate.read(backbone, backbone.run_to_split(backbone.encode(queries), 0).prefill())


def rows_of(reading: Reading, *rows: int) -> Reading:
    return Reading(*(part[list(rows)] for part in reading))


def forward(backbone: Backbone, *queries: Query, acting: Acting | None = None) -> Tensor:
    return backbone.forward(backbone.encode(queries), acting)


class Watched:
    """A gate alone, and what it says each time the last layer runs: ``[R, G]``."""

    def __init__(self, gate: Gate, group: Group) -> None:
        self.gate, self.group, self.rows = gate, group, group.rows
        self.seen: list[Tensor] = []

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        openings = install_gate(self.gate, self.group, prefill)
        hooks.add_pre(backbone.layers[-1], lambda *_: self.seen.append(openings().gate))


def watched(relevance: Gate, keys: Reading, backbone: Backbone) -> Watched:
    return Watched(relevance, group_of(backbone, keys))


# ---------------------------------------------------------------------- memories


def numpy_search(keys: Tensor, query: Tensor, k: int, mean: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    shift = np.zeros(keys.shape[1]) if mean is None else mean.numpy().astype(float)
    a, b = query.numpy().astype(float) - shift, keys.numpy().astype(float) - shift
    cosines = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    best = np.argsort(-cosines, axis=1)[:, :k]
    return best, np.take_along_axis(cosines, best, axis=1)


# ---------------------------------------------------------------------- edits


def editors_of(knowledge: str) -> Make:
    """``make(**settings)``: an editor with other settings than `SETTINGS`, part by part."""

    def make(anchors: Any = None, **settings: Any) -> UniKE:
        return UniKE(anchors=anchors, **merged({**SETTINGS, "knowledge": knowledge}, settings))

    return make


def made_for(edit: Edit) -> dict[str, str]:
    return {"fingerprint": edit.fingerprint, "source": edit.source}


def random_edit(editor: UniKE, backbone: Backbone, facts: Sequence[Query], seed: int = 0) -> UniKEEdit:
    """With the keys of an edit that was made, so that something is near, and everything else drawn."""
    edit = UniKE(editor.config.model_copy(update={"steps": 0})).edit(backbone, facts)
    tensors = dict(edit.tensors)
    for number, (name, tensor) in enumerate(tensors.items()):
        part, generator = name.rpartition(".")[2], torch.Generator().manual_seed(97 * seed + number)
        if part in ("values", "bias", "shift", "own_values"):
            tensors[name] = torch.randn(tensor.shape, generator=generator)
        elif part == "keys":
            tensors[name] = torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.5
    return UniKEEdit(editor.config, tensors, edit.facts, **made_for(edit))
