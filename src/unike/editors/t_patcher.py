"""T-Patcher: one new neuron for each wrong token of an answer (Huang et al., ICLR 2023, arXiv 2301.09785).

A neuron stands beside the last feed-forward network. It is to fire at its own token, and at nothing that a memory of
unrelated inputs holds. With ``a`` its pre-activation at its own token, ``a_mem`` those at the memory, and ``top`` the
mean of the largest values::

    L     = L_edit + L_act + m L_mem
    L_act = top exp(-a),    L_mem = top exp(a_mem - a + 3) + top exp(a_mem + 3)

A key starts at ``q / |q|^2``, so that it fires with 1 at its token's ``q``; a value is ``10 e``, of which ``e``, at
first drawn from ``N(0, 1)``, is trained. Training stops when the answer is right and the loss on a held-out part of the
memory falls no more, which takes 50 to 100 of the 2,000 steps that there are.

Note:
    The memory is that of the *anchors*, unrelated questions of a train split; every fifth of their states is held out.
    Without one, the answer's own loss is watched. The paper's sequential setting also remembers earlier edits, and
    its code halves the learning rate on plateaus; here the rate is constant, an edit that is still wrong on a plateau
    is given up, since all its steps would take minutes, and earlier edits are active, as in every stack.
"""

from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.functional import all_right, target_positions, token_nll
from unike.backbones.forward.hooks import Hooks
from unike.backbones.forward.split import SplitState
from unike.core.settings import Layers
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.editors.common.anchors import ffn_inputs
from unike.editors.common.optimise import optimise
from unike.editors.common.pairs import PARTS, FFNPatch, install_patch, pairs_layout, wrong_positions
from unike.edits.edit import Edit, EditorConfig
from unike.edits.group import Group
from unike.edits.layout import Layout

TOP_ACTIVATIONS = 5
"""Of an edit's neurons, those whose activation at their own tokens counts."""

HELD_OUT = 5
"""One state of the memory in so many decides when to stop."""

LEAST_FALL = 0.05
"""The share of itself by which a loss has to fall for it not to be on a plateau, as in the authors' code."""


class TPatcherConfig(EditorConfig):
    """Settings of `TPatcher`.

    Attributes:
        layers: Where neurons are added, counted from the top when negative (paper: the last).
        max_neurons: For so many wrong tokens, the first ones (paper: 5).
        steps: At most so many Adam steps (the authors' code: 2000).
        lr: Learning rate of Adam (paper: 1e-2).
        weight_decay: Of Adam (paper: 0.01).
        clip: Largest gradient norm of an edit, or None (paper: 5).
        amplify: Factor of the values, which start at random of this size (paper: 10).
        memory_weight: ``m`` (paper: 10).
        margin: By how much a neuron is to fire less at the memory than at its token, and than at 0 (paper: 3).
        top: How many of the largest terms a loss is the mean of (paper: 1000).
        patience: Steps without a gain on the held-out memory after which a right answer is good enough.
        plateau: Steps in which the loss does not fall after which an edit whose answer is not right is given up.
        seed: Of the values' start.
    """

    layers: Layers = (-1,)
    max_neurons: int = Field(5, ge=1)
    steps: int = Field(2000, ge=0)
    lr: float = Field(1e-2, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    clip: float | None = Field(5.0, gt=0)
    amplify: float = Field(10.0, ge=0)
    memory_weight: float = Field(10.0, ge=0)
    margin: float = 3.0
    top: int = Field(1000, ge=1)
    patience: int = Field(10, ge=1)
    plateau: int = Field(100, ge=1)
    seed: int = 0


class TPatcherEdit(Edit):
    """For each layer ``{layer}.keys [B, N, D]``, ``{layer}.bias [B, N]``, ``{layer}.values [B, N, D]``.

    N is ``max_neurons`` for every edit; what an edit does not need is zero, and writes nothing.
    """

    editor = "t_patcher"
    config_class = TPatcherConfig

    @classmethod
    def layout(cls, config: TPatcherConfig, names: Collection[str]) -> Layout:
        """Keys, biases and values of each layer's neurons."""
        return pairs_layout(config.layers, config.max_neurons)

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        """Put the neurons beside their networks."""
        self.install_group(Group(backbone, [self]), hooks, prefill)

    @classmethod
    def install_group(cls, group: Group, hooks: Hooks, prefill: Prefill) -> None:
        """The neurons of all edits stand side by side, so that a long stack costs one product a layer."""
        for layer in group.config.layers:
            keys, bias, values = (group.side_by_side(f"{layer}.{part}") for part in PARTS)
            install_patch(FFNPatch(keys, bias, values), group.backbone.ffn(layer), hooks)


class TPatcher(Editor[TPatcherConfig]):
    """One new neuron in the last feed-forward network for each wrong token of the answer."""

    name: ClassVar[str] = "t_patcher"
    config_class = TPatcherConfig
    edit_class = TPatcherEdit

    @property
    def uses_anchors(self) -> bool:
        """Unless there is no memory loss."""
        return self.config.memory_weight > 0

    def prepare(self, backbone: Backbone) -> None:
        """Read the memory."""
        self._memory(backbone)

    def lowest_layer(self, backbone: Backbone) -> int:
        """The lowest edited layer."""
        return min(map(backbone.layer_index, self.config.layers))

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """Train keys, biases and values until the answer is right and the memory is left alone."""
        config = self.config
        memory = self._memory(backbone)
        state = backbone.run_to_split(backbone.encode(facts), self.lowest_layer(backbone))
        positions = target_positions(state.labels)
        neurons = self._start(backbone, state)
        trained = [tensor for each in neurons.values() for tensor in (each.keys, each.bias, each.directions)]
        best = Best([tensor.requires_grad_() for tensor in trained], config.patience, config.plateau)

        def loss() -> Tensor:
            logits = backbone.run_from_split(state, positions)
            nll = total = token_nll(logits, state.labels)
            held_out = torch.zeros_like(nll)
            for layer, each in neurons.items():
                total = total + each.activation_loss()
                if layer in memory:
                    seen, unseen = memory[layer]
                    total = total + config.memory_weight * each.memory_loss(seen, config)
                    held_out = held_out + each.memory_loss(unseen, config).detach()
            right = all_right(logits.detach(), state.labels)
            best.look(right, held_out if memory else nll.detach(), total.detach())
            return total

        with Hooks() as hooks:
            for layer, each in neurons.items():
                install_patch(each.patch, backbone.ffn(layer), hooks)
            optimise(
                trained,
                loss,
                steps=config.steps,
                lr=config.lr,
                clip=config.clip,
                weight_decay=config.weight_decay,
                stop=best.is_over,
            )
        best.restore()
        patches = {layer: each.patch() for layer, each in neurons.items()}
        return {f"{layer}.{part}": getattr(patch, part) for layer, patch in patches.items() for part in PARTS}

    def _memory(self, backbone: Backbone) -> dict[int, tuple[Tensor, Tensor]]:
        """What neurons should not fire at, ``[M, D]`` for each layer: to train on, and held out."""
        if not self.uses_anchors:
            return {}
        found = {}
        for layer, inputs in self.anchor_inputs(backbone, self.config.layers).items():
            held_out = torch.arange(len(inputs), device=inputs.device) % HELD_OUT == HELD_OUT - 1
            found[layer] = (inputs[~held_out], inputs[held_out])
        return found

    def _start(self, backbone: Backbone, state: SplitState) -> "dict[int, Neurons]":
        where, alive = first_of(wrong_positions(backbone, state), self.config.max_neurons)
        rows = torch.arange(len(where), device=where.device).unsqueeze(1)
        generator = torch.Generator().manual_seed(self.config.seed)
        found = {}
        for layer, inputs in ffn_inputs(backbone, state, self.config.layers).items():
            own = inputs[rows, where].float() * alive.unsqueeze(-1)  # [B, N, D]
            # one draw for all rows, so that a batch equals single edits
            noise = torch.randn(own.shape[1:], generator=generator).to(own)
            found[layer] = Neurons(own, alive, noise * alive.unsqueeze(-1), self.config.amplify)
        return found


class Neurons:
    """The neurons of B edits at one layer while they are trained.

    A neuron that an edit does not need is all zeros: it has no gradient and stays so.

    Args:
        own: ``[B, N, D]``, what the network reads at each neuron's own token.
        alive: ``[B, N]`` bool, which are needed.
        directions: ``[B, N, D]``, ``e``, where the values start.
        amplify: Factor of the values.
    """

    def __init__(self, own: Tensor, alive: Tensor, directions: Tensor, amplify: float) -> None:
        self.own, self.alive, self.directions, self.amplify = own, alive, directions, amplify
        self.keys = own / own.square().sum(dim=-1, keepdim=True).clamp(min=1e-8)
        self.bias = torch.zeros_like(own[..., 0])

    def patch(self) -> FFNPatch:
        """As they are now."""
        return FFNPatch(self.keys, self.bias, self.amplify * self.directions)

    @property
    def activations(self) -> Tensor:
        """``a``, of each neuron at its own token: ``[B, N]``."""
        return (self.own * self.keys).sum(dim=-1) + self.bias

    def activation_loss(self) -> Tensor:
        """``L_act``, ``[B]``: the mean of the five largest terms, or of as many as there are neurons."""
        terms = (-self.activations).exp() * self.alive
        largest = terms.topk(min(TOP_ACTIVATIONS, terms.shape[1]), dim=1).values
        return largest.sum(dim=1) / self.alive.sum(dim=1).clamp(max=TOP_ACTIVATIONS)

    def memory_loss(self, memory: Tensor, config: TPatcherConfig) -> Tensor:
        """``L_mem``, ``[B]``, on inputs ``[M, D]`` of the network."""
        a = self.patch().pre_activations(memory.unsqueeze(0))  # [B, M, N]
        a = a.masked_fill(~self.alive.unsqueeze(1), -torch.inf)
        count = (len(memory) * self.alive.sum(dim=1)).clamp(min=1, max=config.top)  # of terms of living neurons
        more_than_own = top(a - self.activations.unsqueeze(1) + config.margin, config.top)
        more_than_none = top(a + config.margin, config.top)
        return (more_than_own + more_than_none) / count


def top(exponents: Tensor, count: int) -> Tensor:
    """The sum of the ``count`` largest ``exp`` of each row: ``[B, ...]`` to ``[B]``."""
    flat = exponents.flatten(1)
    return flat.topk(min(count, flat.shape[1]), dim=1).values.exp().sum(dim=1)


def first_of(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` true positions of each row of a mask.

    Args:
        mask: ``[B, S]`` bool.
        count: Whatever S is.

    Returns:
        The positions, ``[B, count]``, and which of them there are; others are 0.
    """
    wide = torch.nn.functional.pad(mask, (0, count))
    where = wide.int().sort(dim=1, descending=True, stable=True).indices[:, :count]
    found = wide.gather(1, where)
    return where * found, found


class Best:
    """For each of B edits, the parameters that gave the right answer with the least loss on the held-out memory.

    An edit that never gives it keeps those of the moment when it is given up. What an edit keeps does not depend on how
    long the others take.

    Args:
        parameters: ``[B, ...]`` each, changed in place.
        patience: How often a right edit may be looked at without a gain.
        plateau: How often a wrong edit may be looked at without a fall of what it minimises.
    """

    def __init__(self, parameters: Sequence[Tensor], patience: int, plateau: int) -> None:
        self.parameters, self.patience, self.plateau = parameters, patience, plateau
        self._kept = [parameter.detach().clone() for parameter in parameters]
        self._least = torch.full((len(parameters[0]),), torch.inf, device=parameters[0].device)  # held out
        self._lowest = self._least.clone()  # minimised
        self._waited, self._stalled = torch.zeros_like(self._least), torch.zeros_like(self._least)
        self._settled = torch.zeros_like(self._least, dtype=torch.bool)
        self._over = self._settled.clone()

    def look(self, right: Tensor, held_out: Tensor, loss: Tensor) -> None:
        """Keep the rows that are right and have gained, and those that are given up.

        Args:
            right: ``[B]`` bool, whether the answer is.
            held_out: ``[B]``, the loss on the held-out memory.
            loss: ``[B]``, what is minimised.
        """
        better = right & (held_out < self._least) & ~self._over
        self._least = torch.where(better, held_out, self._least)
        self._waited = torch.where(better, 0, self._waited + self._least.isfinite())
        fell = loss < (1 - LEAST_FALL) * self._lowest
        self._lowest = torch.where(fell, loss, self._lowest)
        self._stalled = torch.where(fell, 0, self._stalled + 1)
        given_up = (self._stalled >= self.plateau) & self._least.isinf() & ~self._over
        keep = better | given_up
        for kept, parameter in zip(self._kept, self.parameters, strict=True):
            kept[keep] = parameter.detach()[keep]
        self._settled = self._settled | keep
        self._over = self._over | given_up | (self._waited >= self.patience)

    def is_over(self) -> bool:
        """Whether no edit gains any more."""
        return bool(self._over.all())

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to what was kept; an edit that is neither right nor given up stays as it is."""
        for kept, parameter in zip(self._kept, self.parameters, strict=True):
            parameter[self._settled] = kept[self._settled]
