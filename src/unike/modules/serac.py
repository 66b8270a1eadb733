"""The two networks of SERAC (Mitchell et al., ICML 2022, arXiv 2206.06520): what is in scope, and what to say then.

*Scope classifier*: a trained linear head on frozen embeddings of question and picture (`sentence_encoder`); with
``e = W emb`` the similarity of a question to an edit is ``exp(-|e_x - e_edit|^2)``. *Counterfactual model*: a small
language model that reads ``"{edit prompt} {target} {x}"`` and answers.

Note:
    Ours: the counterfactual model is made of the lowest layers of the backbone itself, trained, between the backbone's
    embeddings and its head. So it needs no download, reads pictures as the backbone does, projected visual features in
    the place of words, and has the backbone's vocabulary. And the classifier sees the picture, too.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import linear

from unike import home
from unike._version import __version__
from unike.backbones.base import Backbone
from unike.errors import UnikeError
from unike.files import SealedFolder, replace_folder
from unike.functional import target_positions, token_nll
from unike.modules.fact_retrieval import IMAGE, TEXT, embed
from unike.modules.leak_guard import ImageHashes, Trace
from unike.modules.sentence_encoder import MINILM
from unike.settings import Settings
from unike.types import EditCase, Query, SplitState

CONFIG_FILE, TENSOR_FILE = "trained.json", "trained.safetensors"
SAVED = SealedFolder(
    "trained network", CONFIG_FILE, TENSOR_FILE, version=1, keys=frozenset({"editor", "backbone", "network", "sources"})
)

IN_SCOPE, OUT_OF_SCOPE = ("t_generality", "m_generality"), ("t_locality", "m_locality")
"""The probes that the classifier learns from."""


class SERACNetworkSettings(Settings):
    """Settings of SERAC's networks and of their training.

    Attributes:
        encoder: Of texts: a folder or hub id that `sentence-transformers` reads.
        width: Of what the classifier compares, for the question and for the picture.
        sees_images: Whether the classifier reads pictures; the original does not.
        n_layers: Of the counterfactual model; all of a backbone that has fewer.
        lr: Adam's learning rate for the counterfactual model.
        lr_scope: The same for the classifier.
    """

    encoder: str = MINILM
    width: int = Field(128, ge=1)
    sees_images: bool = True
    n_layers: int = Field(4, ge=1)
    lr: float = Field(1e-5, gt=0)
    lr_scope: float = Field(1e-3, gt=0)


# ---------------------------------------------------------------------- the networks


class ScopeClassifier(nn.Module):
    """``e = W emb``, by one head for the question and one for the picture.

    At first both are random projections, which keep distances on average: alike is what the frozen encoders find alike.

    Args:
        text: Width of embeddings of questions.
        image: Width of embeddings of pictures; 0 to leave them out.
        width: Of each head's output.
        seed: Of the projections.
    """

    def __init__(self, text: int, image: int, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.heads = nn.ParameterDict(
            {
                name: nn.Parameter(torch.randn(width, inputs, generator=generator) / width**0.5)
                for name, inputs in ((TEXT, text), (IMAGE, image))
                if inputs
            }
        )

    def forward(self, embedded: Mapping[str, Tensor]) -> Tensor:
        """Embeddings ``text [..., W]`` and ``image [..., D]`` to ``e [..., width or twice that]``."""
        return torch.cat([linear(embedded[name], head) for name, head in self.heads.items()], dim=-1)


def squared_distance(one: Tensor, other: Tensor) -> Tensor:
    """``|e_x - e_edit|^2`` over the last dimension, the negative logarithm of the similarity."""
    return (one - other).square().sum(dim=-1)


class SeracModel(nn.Module):
    """Scope classifier and counterfactual model for one backbone; what is the backbone's stays out of its tensors.

    Args:
        backbone: Without edits.
        settings: Of the networks.
        seed: Of the classifier's start.

    Attributes:
        scope: The classifier.
        layers: The counterfactual model's own layers.
        counterfactual: The model as a whole, which shares everything else with the backbone.
    """

    counterfactual: Backbone

    def __init__(self, backbone: Backbone, settings: SERACNetworkSettings, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        text = embed(backbone, [Query("?")], settings.encoder)[TEXT].shape[1]
        image = backbone.width if settings.sees_images else 0
        self.scope = ScopeClassifier(text, image, settings.width, seed).to(backbone.device)
        small = lowest_layers(backbone, settings.n_layers)
        self.layers = small.layers
        self.__dict__["counterfactual"] = small  # not as a submodule: most of it is the backbone's

    def embed(self, backbone: Backbone, queries: Sequence[Query]) -> dict[str, Tensor]:
        """What the classifier reads of queries, ``text [n, W]`` and ``image [n, D]``; it is frozen."""
        return embed(backbone, queries, self.settings.encoder)


def lowest_layers(backbone: Backbone, count: int) -> Backbone:
    """A backbone of copies of the lowest layers of another, with whose embeddings, vision and head it goes on.

    Raises:
        UnikeError: An edit is attached, which would be copied with the layers.
    """
    if backbone.edits:
        raise UnikeError("SERAC's networks are read while an edit is attached; call editor.prepare(model) before")
    layers = nn.ModuleList(copy.deepcopy(layer) for layer in backbone.layers[:count])
    # Copied is what holds the list of layers, from the model itself down; all else stays what it is.
    modules = dict(backbone.model.named_modules())
    path = next(name for name, module in modules.items() if module is backbone.layers).split(".")
    holders = {".".join(path[:depth]) for depth in range(len(path))}
    shared = [module for name, module in modules.items() if name not in holders]
    weights = [*backbone.model.parameters(), *backbone.model.buffers()]
    memo: dict[int, Any] = {id(each): each for each in (*shared, *weights)} | {id(backbone.layers): layers}
    model = copy.deepcopy(backbone.model, memo)
    return type(backbone)(
        model, backbone.tokenizer, backbone.image_processor, source=backbone.source, template=backbone.template
    )


def counterfactual_query(fact: Query, query: Query) -> Query:
    """``"{edit prompt} {target} {x}"``, about the picture of ``x``; the target stays that of ``x``."""
    prompt = f"{fact.prompt.strip()} {(fact.target or '').strip()} {query.prompt.strip()}"
    return Query(prompt, query.image, query.target)


# ---------------------------------------------------------------------- training


@dataclass(frozen=True, eq=False)
class SeracReading:
    """What does not depend on the networks' weights, of B cases.

    Args:
        facts: Embeddings of the edits, ``[B, ...]``.
        inside: Kind to embeddings of the questions in scope.
        outside: Kind to those of the others.
        states: Kind to the questions in scope as the counterfactual model reads them, up to its first layer.
    """

    facts: dict[str, Tensor]
    inside: dict[str, dict[str, Tensor]]
    outside: dict[str, dict[str, Tensor]]
    states: dict[str, SplitState]

    @property
    def nbytes(self) -> int:
        """Memory, in bytes; embeddings are small beside the states."""
        kept = [t for s in self.states.values() for t in (s.hidden, *s.kwargs.values()) if isinstance(t, Tensor)]
        return sum(tensor.nbytes for tensor in kept)


def read_cases(backbone: Backbone, network: SeracModel, cases: Sequence[EditCase]) -> SeracReading:
    """Read cases that have a probe of each kind, with its answer; of one kind all have a picture, or none.

    Raises:
        UnikeError: A case lacks a kind of probe.
    """
    probes = [{probe.kind: probe.query for probe in reversed(case.probes)} for case in cases]
    for case, found in zip(cases, probes, strict=True):
        if missing := {*IN_SCOPE, *OUT_OF_SCOPE} - found.keys():
            raise UnikeError(f"case {case.case_id} cannot be learned from: it has no {', '.join(sorted(missing))}")
    states = {}
    for kind in IN_SCOPE:
        asked = [counterfactual_query(case.edit, found[kind]) for case, found in zip(cases, probes, strict=True)]
        states[kind] = network.counterfactual.run_to_split(network.counterfactual.encode(asked), 0)
    return SeracReading(
        network.embed(backbone, [case.edit for case in cases]),
        {kind: network.embed(backbone, [found[kind] for found in probes]) for kind in IN_SCOPE},
        {kind: network.embed(backbone, [found[kind] for found in probes]) for kind in OUT_OF_SCOPE},
        states,
    )


WEIGHTS = {"nll": 0.1, "scope": 1.0}
"""Of the losses."""


def losses(network: SeracModel, reading: SeracReading) -> dict[str, Tensor]:
    """What SERAC is trained for, ``[B]`` each, with gradients for the networks.

    Returns:
        ``nll``: of the target behind rephrased questions, given the edit, in nats per token; ``scope``: the binary
        cross-entropy of the classifier, questions in and out of scope weighing the same.
    """
    nll = []
    for state in reading.states.values():
        logits = network.counterfactual.run_from_split(state, target_positions(state.labels))
        nll.append(token_nll(logits, state.labels))
    facts = network.scope(reading.facts)
    inside = [squared_distance(facts, network.scope(each)) for each in reading.inside.values()]
    outside = [squared_distance(facts, network.scope(each)).clamp(min=1e-6) for each in reading.outside.values()]
    refused = [-torch.log(-torch.expm1(-distance)) for distance in outside]  # -log(1 - exp(-d))
    scope = torch.stack(inside).mean(dim=0) + torch.stack(refused).mean(dim=0)
    return {"nll": torch.stack(nll).mean(dim=0), "scope": scope / 2}


def optimizer(network: SeracModel) -> torch.optim.Optimizer:
    """Adam, with a rate of its own for the classifier; lets gradients reach the counterfactual model's layers."""
    return torch.optim.Adam(
        [
            {"params": list(network.layers.requires_grad_(True).parameters()), "lr": network.settings.lr},
            {"params": list(network.scope.parameters()), "lr": network.settings.lr_scope},
        ]
    )


# ---------------------------------------------------------------------- files


def place(backbone: Backbone) -> Path:
    """Where the networks of a backbone are kept unless another folder is chosen."""
    return home.folder() / "trained" / "serac" / backbone.fingerprint()


def save_networks(network: SeracModel, backbone: Backbone, folder: Path, sources: Mapping[str, Any]) -> None:
    """Write ``trained.json`` and ``trained.safetensors``; networks already there are replaced as a whole.

    Args:
        network: For the backbone.
        backbone: It was trained for.
        folder: Its parents are made.
        sources: ``{"images": {content hash: perceptual hash}, "questions": [[prompt, content hash or None]]}``.

    Raises:
        UnikeError: The folder cannot be written, or holds something else.
    """
    described = {
        "unike": __version__,
        "editor": "serac",
        "backbone": {"source": backbone.source, "fingerprint": backbone.fingerprint(), "template": backbone.template},
        "network": network.settings.model_dump(mode="json"),
        "sources": dict(sources),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    replace_folder(folder, SAVED.files(described, save(tensors)), known_by=CONFIG_FILE)


def load_networks(backbone: Backbone, folder: Path | None = None) -> tuple[SeracModel, Tensor]:
    """Networks that were trained for a backbone, ready to be used, and eight bytes that tell them from others, ``[8]``.

    Args:
        backbone: The model they are for.
        folder: Where to look; None for `place`.

    Raises:
        UnikeError: There are none, they are damaged, or were trained for another backbone.
    """
    train = f"run: unike train --editor serac --model {backbone.source}"
    where = folder or place(backbone)
    if folder is None and not (where / CONFIG_FILE).is_file():
        raise UnikeError(f"serac has not been trained for {backbone.source!r} yet; {train}")
    described, content = SAVED.read(where)
    made_for = described["backbone"]
    if described["editor"] != "serac" or made_for["fingerprint"] != backbone.fingerprint():
        raise UnikeError(
            f"the network in {where} was trained for {described['editor']!r} on {made_for['source']!r}, not for "
            f"'serac' on {backbone.source!r} ({backbone.fingerprint()}); {train}"
        )
    network = SeracModel(backbone, SERACNetworkSettings.parse(described["network"]))
    try:
        network.load_state_dict(load(content))
    except (RuntimeError, SafetensorError) as error:
        raise SAVED.damaged(where, str(error).splitlines()[0]) from None
    fingerprint = torch.tensor(list(bytes.fromhex(described["sha256"])[:8]), dtype=torch.uint8)
    return network.eval().requires_grad_(False), fingerprint


def traces_of(folder: Path) -> list[Trace]:
    """What networks were trained on."""
    kept = SAVED.describe(folder)["sources"]
    return [
        Trace(prompt, None if image is None else ImageHashes(image, kept["images"][image]))
        for prompt, image in kept["questions"]
    ]
