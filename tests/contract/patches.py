"""A patch beside the feed-forward networks, and what a model keeps between passes."""

from typing import Any

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import Hooks


class Patch:
    """``relu(q K + b) V`` beside the feed-forward networks of some layers."""

    def __init__(self, backbone: Backbone, layers: tuple[int, ...], size: int = 3, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) / shape[0] ** 0.5

        self.backbone, self.layers = backbone, layers
        width = backbone.width
        self.weights = {i: (draw(width, size), draw(size), draw(size, width)) for i in layers}

    def term(self, i: int, q: Tensor) -> Tensor:
        keys, bias, values = self.weights[i]
        return torch.relu(q @ keys + bias) @ values

    def on(self, hooks: Hooks) -> None:
        for i in self.layers:
            site, seen = self.backbone.ffn(i), {}

            def before(module, args, kwargs, seen=seen):
                seen["q"] = args[0]

            def after(module, args, kwargs, output, i=i, seen=seen):
                return output + self.term(i, seen["q"])

            hooks.add_pre(site.inputs, before)
            hooks.add(site.outputs, after)


def hooks_on(backbone: Backbone) -> int:
    """How many hooks there are; transformers itself leaves some on LLaVA's vision tower after the first forward."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.model.modules())


def generation_configs(backbone: Backbone) -> list[Any]:
    """The settings of whatever in the model can generate: of BLIP-2 also its language model."""
    return [module.generation_config for module in backbone.model.modules() if hasattr(module, "generation_config")]
