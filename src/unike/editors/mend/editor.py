"""MEND: a trained network turns an edit's gradient into a better update (Mitchell et al., ICLR 2022, arXiv 2110.11309).

One backward pass gives the gradient by the feed-forward matrices of the last layers as factors, one pair a token; the
network (`gradient_transform`) changes the factors, and the update is kept as those: ``W + dW`` of rank T.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from unike.backbones.adapter import Backbone
from unike.core.settings import Layers, Settings
from unike.editors.mend.gradient_transform import GradientTransforms
from unike.editors.trained.base import LowRankEdit, LowRankEditor, TrainedConfig
from unike.editors.trained.hypernetwork import Factors, Hypernetwork, matrices_of
from unike.editors.trained.token_gradients import TokenGradients


class MENDConfig(TrainedConfig):
    """Settings of `MEND`; what its network is like was settled in training."""


class MENDNetworkSettings(Settings):
    """Settings of MEND's network and of its training.

    Attributes:
        layers: The edited layers, counted from the top when negative (paper: the last three).
        rank: Of the residual blocks (paper: 1920); never more than the smaller side of a matrix.
        step_size: At first, of every matrix (paper: 1e-4).
        lr: Adam's learning rate for the blocks (paper: 1e-6).
        lr_step_size: The same for step sizes (paper: 1e-4).
    """

    layers: Layers = (-3, -2, -1)
    rank: int = Field(1920, ge=1)
    step_size: float = Field(1e-4, gt=0)
    lr: float = Field(1e-6, gt=0)
    lr_step_size: float = Field(1e-4, gt=0)


class MENDEdit(LowRankEdit):
    """Updates of rank T, the number of tokens that the gradient comes from."""

    editor = "mend"
    config_class = MENDConfig


class MEND(LowRankEditor[MENDConfig]):
    """A trained network that turns the gradient of one backward pass into an update of the last layers."""

    name: ClassVar[str] = "mend"
    config_class = MENDConfig
    edit_class = MENDEdit
    network_settings = MENDNetworkSettings
    weights: ClassVar[Mapping[str, float]] = {
        "t_generality": 0.1,
        "m_generality": 0.1,
        "t_locality": 1.0,
        "m_locality": 1.0,
    }
    clip = 100.0

    def build(self, backbone: Backbone, settings: MENDNetworkSettings, seed: int = 0) -> GradientTransforms:
        """A new network, whose update is a step along the gradient."""
        matrices = matrices_of(backbone, settings.layers)
        return GradientTransforms(matrices, rank=settings.rank, step_size=settings.step_size, seed=seed).to(
            backbone.device
        )

    def optimizer(self, network: nn.Module, settings: MENDNetworkSettings) -> torch.optim.Optimizer:
        """Adam, with a rate of their own for step sizes."""
        blocks = [p for name, p in network.named_parameters() if name != "step_sizes"]
        return torch.optim.Adam(
            [
                {"params": blocks, "lr": settings.lr},
                {"params": [network.get_parameter("step_sizes")], "lr": settings.lr_step_size},
            ]
        )

    def factors(
        self, network: Hypernetwork, gradients: Mapping[str, TokenGradients], condition: None
    ) -> dict[str, Factors]:
        """What the network makes of the gradient."""
        found: dict[str, Factors] = network(gradients)
        return found
