"""FT: fine-tuning of the last layer's feed-forward network, the simplest baseline (paper, appendix D.2).

The update is kept as ``W + dW`` and applied beside the weight, so that batches of independent edits train in one pass
and the backbone stays untouched.
"""

from collections.abc import Collection
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.functional import target_positions, token_nll
from unike.backbones.forward.hooks import Hooks
from unike.data.queries import Query
from unike.editors.base import Editor
from unike.editors.common.low_rank import install_delta
from unike.editors.common.optimise import optimise
from unike.edits.edit import Edit, EditorConfig
from unike.edits.group import Group
from unike.edits.layout import Layout, declared, matrix_sizes
from unike.edits.weights import WeightUpdate


class FTConfig(EditorConfig):
    """Settings of `FT`.

    Attributes:
        layer: Which layer's feed-forward network, counted from the top when negative.
        steps: Adam steps (AdamW without decay: decaying an update would pull it back to zero, not to the model).
        lr: Learning rate; VLKEB's configs have 2e-4 for BLIP-2 and 1e-4 for MiniGPT-4.
        clip: Largest gradient norm of an edit, or None.
    """

    layer: int = -1
    steps: int = Field(15, ge=0)
    lr: float = Field(2e-4, gt=0)
    clip: float | None = Field(None, gt=0)


class FTEdit(Edit):
    """One weight update for each matrix of the network: ``{matrix} [B, out, in]``."""

    editor = "ft"
    config_class = FTConfig

    @classmethod
    def layout(cls, config: FTConfig, names: Collection[str]) -> Layout:
        """One for each matrix, however the model calls it."""
        return {name: declared(f"{name}.out", f"{name}.in") for name in names or ["of any matrix"]}

    def sizes(self, backbone: Backbone) -> dict[str, int]:
        """Those of the layer's matrices."""
        layer = cast(FTConfig, self.config).layer
        for name in backbone.ffn(layer).matrices:
            if name not in self.tensors:
                raise ValueError(f"the tensor {name} is missing")
        return dict(matrix_sizes(backbone, layer, self.tensors))

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        """Apply the updates beside the layer's matrices."""
        self.install_group(Group(backbone, [self]), hooks, prefill)

    @classmethod
    def install_group(cls, group: Group, hooks: Hooks, prefill: Prefill) -> None:
        """The sum of all updates, so that a long stack costs one product a matrix."""
        for name, linear in group.backbone.ffn(group.config.layer).matrices.items():
            install_delta(linear, group.added_up(name), hooks)

    @classmethod
    def weight_updates(cls, group: Group) -> list[WeightUpdate]:
        """The sum of all updates of each matrix."""
        matrices = group.backbone.ffn(group.config.layer).matrices
        return [WeightUpdate(linear, group.added_up(name)[0]) for name, linear in matrices.items()]


class FT(Editor[FTConfig]):
    """Fine-tuning of the last feed-forward network, the simplest baseline."""

    name: ClassVar[str] = "ft"
    config_class = FTConfig
    edit_class = FTEdit

    def lowest_layer(self, backbone: Backbone) -> int:
        """The edited layer."""
        return backbone.layer_index(self.config.layer)

    def make(self, backbone: Backbone, facts: list[Query]) -> dict[str, Tensor]:
        """Gradient descent on ``dW``, from zero."""
        state = backbone.run_to_split(backbone.encode(facts), self.lowest_layer(backbone))
        positions = target_positions(state.labels)
        matrices = backbone.ffn(self.config.layer).matrices
        shapes = {name: (len(facts), linear.out_features, linear.in_features) for name, linear in matrices.items()}
        deltas = {
            name: torch.zeros(shape, device=backbone.device, requires_grad=True) for name, shape in shapes.items()
        }
        with Hooks() as hooks:
            for name, delta in deltas.items():
                install_delta(matrices[name], delta, hooks)
            optimise(
                list(deltas.values()),
                lambda: token_nll(backbone.run_from_split(state, positions), state.labels),
                steps=self.config.steps,
                lr=self.config.lr,
                clip=self.config.clip,
            )
        return dict(deltas)
