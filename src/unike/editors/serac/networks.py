"""The two networks of SERAC (Mitchell et al., ICML 2022, arXiv 2206.06520): what is in scope, and what to say then.

*Scope classifier*: a text encoder (`sentence_encoder`), fine-tuned, with a trained linear head; with ``e = W emb`` the
similarity of a question to an edit is ``exp(-|e_x - e_edit|^2)``. *Counterfactual model*: a small language model that
reads ``"{edit prompt} {target} {x}"`` and answers.

Note:
    Ours: the counterfactual model is made of layers of the backbone itself, trained, between the backbone's
    embeddings and its head. So it needs no download, reads pictures as the backbone does, projected visual features in
    the place of words, and has the backbone's vocabulary. And the classifier sees the picture, too, by a head on frozen
    features of the backbone.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import linear
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import all_right, target_positions, token_nll
from unike.backbones.forward.split import SplitState
from unike.core.errors import UnikeError
from unike.core.settings import Settings
from unike.data.queries import EditCase, Query
from unike.editors.common.retrieval import IMAGE, TEXT
from unike.editors.common.sentence_encoder import MINILM, embed_images, sentence_encoder, trainable_encoder
from unike.editors.trained.meta_objective import FACT, REPHRASED, UNRELATED, Objective, probes_of
from unike.edits.stack import edits_on


class SERACNetworkSettings(Settings):
    """Settings of SERAC's networks and of their training.

    Attributes:
        encoder: Of texts: a folder or hub id that `sentence-transformers` reads.
        finetune_encoder: Whether its weights are trained, as in the original, and are a part of the network. Only the
            encoder that ships can be.
        width: Of what the classifier compares, for the question and for the picture.
        sees_images: Whether the classifier reads pictures; the original does not.
        n_layers: Of the counterfactual model; None for all, which can read and repeat an answer from the start.
            Fewer cost less, and have to learn that first.
        lr: Adam's learning rate for the counterfactual model.
        lr_scope: The same for the classifier's heads.
        lr_encoder: The same for its text encoder (MMEdit's configs: 1e-5).
    """

    encoder: str = MINILM
    finetune_encoder: bool = True
    width: int = Field(128, ge=1)
    sees_images: bool = True
    n_layers: int | None = Field(None, ge=1)
    lr: float = Field(1e-4, gt=0)
    lr_scope: float = Field(1e-3, gt=0)
    lr_encoder: float = Field(1e-5, gt=0)

    @model_validator(mode="after")
    def _an_encoder_that_can_be_trained(self) -> Self:
        if self.finetune_encoder and self.encoder != MINILM:
            raise ValueError("only the encoder that ships can be fine-tuned; for another set finetune_encoder=false")
        return self


# ---------------------------------------------------------------------- the networks


class ScopeClassifier(nn.Module):
    """``e = W emb``, by one head for the question and one for the picture.

    At first both are random projections, which keep distances on average: alike is what the encoders find alike.

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


IN_SCOPE = 0.5
"""The similarity above which a question is about an edit."""


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
        encoder: The classifier's text encoder, if that is trained.
        scope: The classifier's heads.
        layers: The counterfactual model's own layers.
        counterfactual: The model as a whole, which shares everything else with the backbone.
    """

    counterfactual: Backbone

    def __init__(self, backbone: Backbone, settings: SERACNetworkSettings, seed: int = 0) -> None:
        super().__init__()
        self.settings, self.device = settings, str(backbone.device)
        self.encoder = trainable_encoder(self.device) if settings.finetune_encoder else None
        with torch.no_grad():
            text = self.embed_texts(["?"]).shape[1]
        image = backbone.width if settings.sees_images else 0
        self.scope = ScopeClassifier(text, image, settings.width, seed).to(backbone.device)
        small = with_layers_copied(backbone, settings.n_layers or backbone.n_layers)
        self.layers = small.layers
        self.__dict__["counterfactual"] = small  # not as a submodule: most of it is the backbone's

    def train(self, mode: bool = True) -> Self:
        """Say whether it is trained; either way without dropout, as everything here computes."""
        self.training = mode
        return self

    def embed(self, backbone: Backbone, queries: Sequence[Query]) -> dict[str, Tensor]:
        """What the classifier's heads read of queries, ``text [n, W]`` and ``image [n, D]``."""
        images = embed_images(backbone, [query.image for query in queries])
        return {TEXT: self.embed_texts([query.prompt for query in queries]), IMAGE: images}

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """``[n, W]``; gradients reach the encoder if it is trained."""
        if self.encoder is None:
            return sentence_encoder(self.settings.encoder, self.device).embed(texts)
        vectors: Tensor = self.encoder(texts)
        return vectors


def with_layers_copied(backbone: Backbone, count: int) -> Backbone:
    """A backbone of copies of some layers of another, between whose embeddings, vision and head they stand.

    They are evenly spread from the first to the last, as distilled models start (DistilBERT, arXiv 1910.01108): what
    the lowest alone write, the head cannot read.

    Raises:
        UnikeError: An edit is attached, which would be copied with the layers.
    """
    if edits_on(backbone):
        raise UnikeError("SERAC's networks are read while an edit is attached; call editor.prepare(model) before")
    last, steps = backbone.n_layers - 1, max(1, min(count, backbone.n_layers) - 1)
    layers = nn.ModuleList(copy.deepcopy(backbone.layers[last * i // steps]) for i in range(min(count, last + 1)))
    # Copied is what holds the list of layers, from the model itself down; all else stays what it is.
    modules = dict(backbone.model.named_modules())
    path = next(name for name, module in modules.items() if module is backbone.layers).split(".")
    holders = {".".join(path[:depth]) for depth in range(len(path))}
    shared = [module for name, module in modules.items() if name not in holders]
    weights = [*backbone.model.parameters(), *backbone.model.buffers()]
    memo: dict[int, Any] = {id(each): each for each in (*shared, *weights)} | {id(backbone.layers): layers}
    model = copy.deepcopy(backbone.model, memo)
    return backbone.around(model)


def counterfactual_query(fact: Query, query: Query) -> Query:
    """``"{edit prompt} {target} {x}"``, about the picture of ``x``; the target stays that of ``x``."""
    prompt = f"{fact.prompt.strip()} {(fact.target or '').strip()} {query.prompt.strip()}"
    return Query(prompt, query.image, query.target)


# ---------------------------------------------------------------------- training


@dataclass(frozen=True, eq=False)
class FrozenSeracCases:
    """What does not depend on the networks' weights, of B cases.

    Args:
        texts: Of the edits, and of each kind of question, what the classifier's text encoder reads.
        images: What its head reads of their pictures, ``[B, D]``.
        states: Kind to the rephrased questions as the counterfactual model reads them, up to its first layer.
    """

    texts: Mapping[str, list[str]]
    images: Mapping[str, Tensor]
    states: Mapping[str, SplitState]

    @property
    def nbytes(self) -> int:
        """Memory, in bytes; embeddings are small beside the states."""
        return sum(state.nbytes for state in self.states.values())


def full_precision_weights(model: Backbone) -> torch.autocast:
    """Lets layers with fp32 weights stand in a model of half precision: what a step adds is lost in fewer bits.

    In bfloat16, whatever the model is in: gradients in float16 would have to be scaled.
    """
    return torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype != torch.float32)


@torch.no_grad()
def read(backbone: Backbone, network: SeracModel, cases: Sequence[EditCase]) -> FrozenSeracCases:
    """Read cases that have `probes_of`; of one kind all have a picture, or none."""
    asked = [probes for case in cases if (probes := probes_of(case)) is not None]
    texts, images, states = {}, {}, {}
    for kind in (FACT, *REPHRASED, *UNRELATED):
        texts[kind] = [probes[kind].prompt for probes in asked]
        images[kind] = embed_images(backbone, [probes[kind].image for probes in asked])
    for kind in REPHRASED:
        batch = network.counterfactual.encode([counterfactual_query(probes[FACT], probes[kind]) for probes in asked])
        states[kind] = network.counterfactual.run_to_split(batch, 0)
    return FrozenSeracCases(texts, images, states)


def scope_embeddings(network: SeracModel, frozen: FrozenSeracCases) -> dict[str, Tensor]:
    """``e`` of the edits and of each kind of question, ``[B, ...]``, in one pass of the text encoder."""
    texts = network.embed_texts([text for texts in frozen.texts.values() for text in texts])
    each = texts.split([len(texts) for texts in frozen.texts.values()])
    return {
        kind: network.scope({TEXT: text, IMAGE: frozen.images[kind]})
        for kind, text in zip(frozen.texts, each, strict=True)
    }


def objective(network: SeracModel, frozen: FrozenSeracCases) -> Objective:
    """What SERAC is trained for, with gradients for the networks.

    Returns:
        Losses: ``nll`` of the target behind rephrased questions, given the edit, in nats per token; ``scope``, the
        binary cross-entropy of the classifier, questions in and out of scope weighing the same. Scores: whether a
        rephrased question is in scope and its target right, and whether an unrelated one is out of scope.
    """
    embedded = scope_embeddings(network, frozen)
    distances = {kind: squared_distance(embedded[FACT], embedded[kind]) for kind in (*REPHRASED, *UNRELATED)}
    nll, bce, scores = [], [], {}
    for kind in REPHRASED:
        state = frozen.states[kind]
        with full_precision_weights(network.counterfactual):
            logits = network.counterfactual.run_from_split(state, target_positions(state.labels))
        nll.append(token_nll(logits, state.labels))
        bce.append(distances[kind])  # -log of the similarity
        in_scope = torch.exp(-distances[kind]) > IN_SCOPE
        scores[kind] = (in_scope & all_right(logits.detach(), state.labels)).float()
    for kind in UNRELATED:
        bce.append(-torch.log(-torch.expm1(-distances[kind].clamp(min=1e-6))))  # -log(1 - similarity)
        scores[kind] = (torch.exp(-distances[kind]) <= IN_SCOPE).float()
    losses = {"nll": torch.stack(nll).mean(dim=0), "scope": torch.stack(bce).mean(dim=0)}
    return Objective(losses, scores)
