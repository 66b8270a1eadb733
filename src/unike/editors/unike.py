"""UniKE, the intrinsic half: new key-value pairs in the top feed-forward networks (NeurIPS 2024, sections 3.1 and 3.2).

``FFN_edit(q) = FFN(q) + relu(q K^T + b) V`` (Eq. 3) at each edited layer, where only ``K, b, V`` are trained on the
answer's NLL, from ``V = 0``, so that step 0 is the unedited model. A key starts at the network's input ``q_e`` where a
wrong answer token is predicted, made selective against *anchors*, inputs the edit has nothing to do with.

Note:
    The paper does not say how keys start. T-Patcher, which it builds on, takes ``k = q_e / |q_e|^2``
    (``key_init="raw"``), which nearly every input activates, because the inputs of a layer share a large mean.
    ``"centred"`` measures from the mean of the anchors, ``"whitened"`` also by their covariance ``C``: with
    ``d = q_e - mean``, ``k ~ C^-1 d`` is the linear discriminant between the edit and the anchors. Each is scaled so
    that ``q_e`` activates its key by 1 and an input that is less than ``threshold`` of the way from the mean to
    ``q_e``, along the key, not at all.
"""

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from unike.backbones.base import Backbone
from unike.editors.base import Edit, Editor, EditorConfig
from unike.functional import target_positions, token_nll
from unike.hooks import Hooks
from unike.modules.anchors import ffn_inputs
from unike.modules.ffn_patch import FFNPatch
from unike.modules.optimise import optimise
from unike.types import Query, SplitState


class UniKEConfig(EditorConfig):
    """Settings of `UniKE`.

    Attributes:
        layers: The edited layers, counted from the top when negative (paper: the last four).
        n_pairs: N, key-value pairs a layer (paper: 10).
        steps: Adam steps.
        lr: Learning rate of Adam.
        clip: Largest gradient norm of an edit, or None.
        key_init: Where keys start, see above; without anchors all are ``"raw"``.
        shrinkage: Weight of the identity in the covariance of ``"whitened"``: near 0 the sample's own, 1 ``"centred"``.
        threshold: The part of the way to ``q_e`` at which a key begins to fire; ``"raw"`` keys count from the origin.
        noise: Standard deviation, relative to a key, of the noise that makes keys of one position differ.
        locality: Weight of the locality term ``mean(relu(a + margin))`` over the pre-activations ``a`` of anchors.
        margin: How far below zero the locality term pushes those.
        train_keys: Whether keys and biases are trained, or values alone.
        seed: Of the noise.
    """

    layers: tuple[int, ...] = (-4, -3, -2, -1)
    n_pairs: int = Field(10, ge=1)
    steps: int = Field(20, ge=0)
    lr: float = Field(5e-3, gt=0)
    clip: float | None = 1.0
    key_init: Literal["raw", "centred", "whitened"] = "whitened"
    shrinkage: float = Field(0.1, ge=1e-4, le=1)
    threshold: float = Field(0.3, ge=0, lt=1)
    noise: float = Field(0.01, ge=0)
    locality: float = Field(1.0, ge=0)
    margin: float = 0.1
    train_keys: bool = True
    seed: int = 0


class UniKEEdit(Edit):
    """``{layer}.keys``, ``{layer}.bias`` and ``{layer}.values`` for each edited layer, shapes as in `FFNPatch`."""

    editor = "unike"
    config_class = UniKEConfig

    def install(self, backbone: Backbone, hooks: Hooks) -> None:
        """Put the new pairs beside the feed-forward networks."""
        for layer in cast(UniKEConfig, self.config).layers:
            patch = FFNPatch(*(self.tensors[f"{layer}.{part}"] for part in ("keys", "bias", "values")))
            patch.install(backbone.ffn(layer), hooks)


class UniKE(Editor[UniKEConfig]):
    """The intrinsic half of UniKE: new key-value pairs in the top feed-forward networks."""

    name: ClassVar[str] = "unike"
    config_class = UniKEConfig
    edit_class = UniKEEdit

    def prepare(self, backbone: Backbone) -> None:
        """Read the anchors."""
        if self.anchors:
            self.anchors.ffn_inputs(backbone, self.config.layers)

    def split(self, backbone: Backbone) -> int:
        """The lowest edited layer."""
        return min(map(backbone.layer_index, self.config.layers))

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """Run to the lowest edited layer once, start the pairs, and train them on the rest of the model."""
        config = self.config
        state = backbone.run_to_split(backbone.encode(facts), self.split(backbone))
        positions = target_positions(state.labels)
        anchors = self.anchors.ffn_inputs(backbone, config.layers) if self.anchors else {}
        patches = self._start(backbone, state, anchors)
        trained = [p for patch in patches.values() for p in self._trained(patch)]

        def loss() -> Tensor:
            logits = backbone.run_from_split(state, positions)
            total = token_nll(logits, state.labels)
            for layer, memory in anchors.items():
                silent = torch.relu(patches[layer].pre_activations(memory.unsqueeze(0)) + config.margin)
                total = total + config.locality * silent.mean(dim=(1, 2))
            return total

        with Hooks() as hooks:
            for layer, patch in patches.items():
                patch.install(backbone.ffn(layer), hooks)
            optimise(trained, loss, steps=config.steps, lr=config.lr, clip=config.clip)
        return {
            f"{layer}.{part}": getattr(patch, part)
            for layer, patch in patches.items()
            for part in ("keys", "bias", "values")
        }

    def _trained(self, patch: FFNPatch) -> list[Tensor]:
        parts = [patch.keys, patch.bias, patch.values] if self.config.train_keys else [patch.values]
        return [part.requires_grad_() for part in parts]

    def _start(self, backbone: Backbone, state: SplitState, anchors: dict[int, Tensor]) -> dict[int, FFNPatch]:
        """Pairs with ``V = 0`` whose keys fire where the model predicts wrong answer tokens."""
        wrong = wrong_positions(backbone, state)
        rows, chosen = cycle(wrong, self.config.n_pairs)  # [B, N] each
        generator = torch.Generator().manual_seed(self.config.seed)
        patches = {}
        for layer, inputs in ffn_inputs(backbone, state, self.config.layers).items():
            q = inputs[rows, chosen].float()  # [B, N, D]
            # one draw for all rows, so that a batch equals single edits
            noise = torch.randn(q.shape[1:], generator=generator).to(q) / q.shape[-1] ** 0.5
            q = q + self.config.noise * q.norm(dim=-1, keepdim=True) * noise
            keys, bias = self._keys(q, anchors.get(layer))
            patches[layer] = FFNPatch(keys, bias, torch.zeros_like(keys))
        return patches

    def _keys(self, q: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys ``[B, N, D]`` and biases ``[B, N]`` for the inputs they are to fire at.

        ``a(x) = (k (x - mean) - t) / (1 - t)`` with ``k (q_e - mean) = 1`` and ``t`` the threshold.
        """
        config = self.config
        mean = q.new_zeros(q.shape[-1]) if memory is None or config.key_init == "raw" else memory.mean(dim=0)
        d = q - mean
        k = d if memory is None or config.key_init != "whitened" else d @ precision(memory, config.shrinkage)
        k = k / (k * d).sum(dim=-1, keepdim=True).clamp(min=1e-8)
        return k / (1 - config.threshold), (-(k @ mean) - config.threshold) / (1 - config.threshold)


def precision(memory: Tensor, shrinkage: float) -> Tensor:
    """Inverse of the shrunken covariance of ``memory [M, D]``: ``((1 - s) C + s tr(C) / D I)^-1``, ``[D, D]``."""
    centred = memory - memory.mean(dim=0)
    covariance = centred.T @ centred / len(memory)
    identity = torch.eye(len(covariance), device=memory.device)
    scale = covariance.diagonal().mean().clamp(min=1e-8)  # a single anchor has no spread
    return torch.linalg.inv((1 - shrinkage) * covariance + shrinkage * scale * identity)


@torch.no_grad()
def wrong_positions(backbone: Backbone, state: SplitState) -> Tensor:
    """``[B, S]`` bool: where a wrong answer token is predicted; every answer position of a row that has none wrong."""
    positions = target_positions(state.labels)
    wrong = torch.zeros_like(positions)
    guesses = backbone.run_from_split(state, positions).argmax(dim=-1)
    wrong[positions] = guesses != state.labels.roll(-1, dims=1)[positions]
    return torch.where(wrong.any(dim=1, keepdim=True), wrong, positions)


def cycle(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """For each row of ``mask [B, S]``, ``count`` true positions in turn: rows and columns, ``[B, count]`` each."""
    columns = [row.nonzero()[:, 0] for row in mask]
    chosen = torch.stack([found[torch.arange(count, device=mask.device) % len(found)] for found in columns])
    return torch.arange(len(mask), device=mask.device).unsqueeze(1).expand_as(chosen), chosen
