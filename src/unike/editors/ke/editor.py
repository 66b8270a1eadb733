"""KE, KnowledgeEditor: a network that reads what is to change rescales the gradient (De Cao et al., EMNLP 2021).

The text ``{old answer} >> {target} || {prompt}`` and the gradient of the target's NLL make a low-rank update of the
last layers' feed-forward matrices (`unike.editors.ke.conditioned_update`). The network is trained under a constraint:
unrelated answers may diverge by no more than a margin, which shrinks while edits succeed (arXiv 2104.08164).

Note:
    The paper trains a copy of the model's embeddings for its texts; here the model's own are read, so that a network is
    a few megabytes whatever the vocabulary. Pictures are in the gradient, and as rephrasings and unrelated questions in
    the objective, but not in the text. Learning rates warm up as the authors' do, and stay there: a linear decay needs
    to know when training ends, and one that has ended can go on for longer here.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.core.settings import Layers, Settings
from unike.data.queries import Query
from unike.editors.ke.conditioned_update import ConditionedUpdates
from unike.editors.trained.base import LowRankEdit, LowRankEditor, TrainedConfig
from unike.editors.trained.hypernetwork import Factors, Hypernetwork, matrices_of
from unike.editors.trained.meta_objective import FACT, REPHRASED, UNRELATED
from unike.editors.trained.token_gradients import TokenGradients

Texts = tuple[Tensor, Tensor]
"""Embedded texts ``[B, L, D]`` fp32, zero behind their ends, and their lengths ``[B]``."""


class KEConfig(TrainedConfig):
    """Settings of `KE`; what its network is like was settled in training."""


class KENetworkSettings(Settings):
    """Settings of KE's network and of its training.

    Attributes:
        layers: The edited layers, counted from the top when negative.
        max_scale: The largest factor of an update.
        lr: Learning rate of the network, by centred RMSprop (paper: 3e-4).
        lr_multiplier: The same for the multiplier of the constraint, which ascends (paper: 0.1).
        warmup: Steps in which both rates rise from 0 (the authors' code: 1,000 of 200,000; here the same share of the
            loop's own 5,000).
        margin: By how many nats unrelated answers may diverge, at first (paper: 1e-3).
        margin_decay: What the margin is multiplied with after a validation in which edits succeed (paper: 0.8).
        margin_floor: The smallest margin (paper: 1e-5; MiniGPT-4 1e-7).
        enough: The share of edits that have to succeed for that (paper: 0.9).
    """

    layers: Layers = (-3, -2, -1)
    max_scale: float = Field(1.0, gt=0)
    lr: float = Field(3e-4, gt=0)
    lr_multiplier: float = Field(0.1, gt=0)
    warmup: int = Field(25, ge=0)
    margin: float = Field(1e-3, gt=0)
    margin_decay: float = Field(0.8, gt=0, le=1)
    margin_floor: float = Field(1e-5, ge=0)
    enough: float = Field(0.9, ge=0, le=1)


class KEEdit(LowRankEdit):
    """Updates of rank T + 1, with T the number of tokens that the gradient comes from."""

    editor = "ke"
    config_class = KEConfig


class KE(LowRankEditor[KEConfig]):
    """A trained network that reads the wrong answer and the right one, and rescales the gradient."""

    name: ClassVar[str] = "ke"
    config_class = KEConfig
    edit_class = KEEdit
    network_settings = KENetworkSettings
    weights: ClassVar[Mapping[str, float]] = {kind: 1 / 3 for kind in (FACT, *REPHRASED)} | dict.fromkeys(
        UNRELATED, 0.5
    )

    def build(self, backbone: Backbone, settings: KENetworkSettings, seed: int = 0) -> ConditionedUpdates:
        """A new network, whose updates are small and random."""
        matrices, width = matrices_of(backbone, settings.layers), backbone.model.get_input_embeddings().embedding_dim
        network = ConditionedUpdates(matrices, width, max_scale=settings.max_scale, margin=settings.margin, seed=seed)
        return network.to(backbone.device)

    def optimizer(self, network: ConditionedUpdates, settings: KENetworkSettings) -> torch.optim.Optimizer:
        """Centred RMSprop; the multiplier goes up its gradient."""
        others = [parameter for parameter in network.parameters() if parameter is not network.multiplier]
        return torch.optim.RMSprop(
            [
                {"params": others, "lr": settings.lr},
                {"params": [network.multiplier], "lr": settings.lr_multiplier, "maximize": True},
            ],
            centered=True,
        )

    def condition(self, backbone: Backbone, facts: Sequence[Query]) -> Texts:
        """What is to change, in words, by the backbone's embeddings."""
        old = backbone.generate(facts)
        texts = [f"{was} >> {fact.target} || {fact.prompt}" for was, fact in zip(old, facts, strict=True)]
        ids = [torch.tensor(each) for each in backbone.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        embed = backbone.model.get_input_embeddings()
        embedded = [embed(each.to(backbone.device)).float() for each in ids]
        return torch.nn.utils.rnn.pad_sequence(embedded, batch_first=True), torch.tensor([len(each) for each in ids])

    def factors(
        self, network: Hypernetwork, gradients: Mapping[str, TokenGradients], condition: Texts
    ) -> dict[str, Factors]:
        """What the network makes of the gradient and the texts."""
        found: dict[str, Factors] = network(gradients, *condition)
        return found

    def total(self, network: ConditionedUpdates, losses: Mapping[str, Tensor]) -> Tensor:
        """The Lagrangian: NLL of fact and rephrasings, and how far unrelated answers are beyond the margin."""
        weighted = {kind: weight * losses[kind].mean() for kind, weight in self.weights.items()}
        nll = torch.stack([weighted[kind] for kind in (FACT, *REPHRASED)]).sum()
        divergence = torch.stack([weighted[kind] for kind in UNRELATED]).sum()
        return nll + network.multiplier * (divergence - network.margin)

    def warmth(self, settings: KENetworkSettings, step: int) -> float:
        """Rises linearly: centred RMSprop knows no gradient's size yet, and its first steps are ten times as long."""
        return min(1.0, (step - 1) / settings.warmup) if settings.warmup else 1.0

    @torch.no_grad()
    def stepped(self, network: ConditionedUpdates) -> None:
        """A multiplier is never negative."""
        network.multiplier.clamp_(min=0)

    def validated(self, network: ConditionedUpdates, settings: KENetworkSettings, scores: Mapping[str, float]) -> None:
        """Ask for more as soon as edits succeed."""
        if scores[FACT] > settings.enough:
            network.margin.mul_(settings.margin_decay).clamp_(min=settings.margin_floor)
