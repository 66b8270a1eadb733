"""Where a model keeps its parts: the decoder is found by its shape, not by its name."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unike.backbones.loading import QUANTIZED
from unike.core.errors import UnikeError


@dataclass(frozen=True)
class FFNSite:
    """Where a layer's feed-forward network can be read and changed.

    Args:
        inputs: The module whose first input is the network's input ``q``: ``[B, S, D]``, in OPT flattened to ``[B *
            S, D]``.
        outputs: The module whose output is the network's output, in the same shape; an edit adds to it.
        matrices: The linear maps by their own names: ``fc1, fc2`` or ``gate_proj, up_proj, down_proj``.
        gated: Whether the network is gated (three matrices).
    """

    inputs: nn.Module
    outputs: nn.Module
    matrices: dict[str, nn.Linear]
    gated: bool


@dataclass(frozen=True)
class AttentionSite:
    """The parts of a layer's self-attention.

    Args:
        module: The attention; it is given ``hidden_states`` by keyword and returns ``(output, weights)``.
        q_proj: ``D -> n_heads * head_dim``.
        k_proj: ``D -> n_kv_heads * head_dim``.
        v_proj: ``D -> n_kv_heads * head_dim``.
        o_proj: ``n_heads * head_dim -> D``.
        q_norm: Norm of each query head, or None.
        k_norm: Norm of each key head, or None.
        n_heads: Query heads.
        n_kv_heads: Key and value heads.
        head_dim: Width of a head.
        scale: What query-key products are multiplied with.
    """

    module: nn.Module
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float


class Parts:
    """A model, taken apart.

    Args:
        model: A ``transformers`` model for image-text-to-text.
        source: What it is called in messages.

    Raises:
        UnikeError: It has no decoder of a known shape.
    """

    def __init__(self, model: Any, source: str) -> None:
        """Find the decoder; an unknown layer is refused here, not in the middle of an edit."""
        self.model: Any = model
        self.source = source
        self.text_stack = find_text_stack(model, source)
        for find in (self.ffn, self.attention, self.input_norm):
            find(0)

    @property
    def config(self) -> Any:
        """The whole model's config."""
        return self.model.config

    @property
    def text_config(self) -> Any:
        """The decoder's config."""
        return self.config.get_text_config(decoder=True)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, lowest first."""
        layers: nn.ModuleList = self.text_stack.layers
        return layers

    @property
    def head(self) -> nn.Linear:
        """The map from the final hidden state to logits."""
        head: nn.Linear = self.model.get_output_embeddings()
        return head

    @property
    def n_layers(self) -> int:
        """How many decoder layers there are."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """D."""
        return self.head.weight.shape[1]

    @property
    def vocab_size(self) -> int:
        """V, the number of logits (it may exceed the tokenizer's vocabulary)."""
        return self.head.weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the head computes; of a model on several devices, where queries are put and patches are made."""
        offloaded_to = getattr(getattr(self.head, "_hf_hook", None), "execution_device", None)
        return self.head.weight.device if offloaded_to is None else torch.device(offloaded_to)

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in."""
        return self.head.weight.dtype

    @property
    def quantize(self) -> str | None:
        """One of `QUANTIZED`, if matrices are kept in so many bits."""
        config = getattr(self.config, "quantization_config", None)
        return next((bits for bits in QUANTIZED if getattr(config, f"load_in_{bits}", False)), None)

    def layer_index(self, i: int) -> int:
        """A layer counted from 0; negative numbers count from the top, -1 being the last.

        Raises:
            UnikeError: There is no such layer.
        """
        if not -self.n_layers <= i < self.n_layers:
            raise UnikeError(f"layer {i} is out of range: {self.source} has {self.n_layers} layers")
        return i % self.n_layers

    def ffn(self, i: int) -> FFNSite:
        """The feed-forward network of layer ``i``."""
        layer: Any = self.layers[self.layer_index(i)]
        if hasattr(layer, "fc1") and hasattr(layer, "fc2"):
            return FFNSite(layer.fc1, layer.fc2, {"fc1": layer.fc1, "fc2": layer.fc2}, gated=False)
        mlp = getattr(layer, "mlp", None)
        names = ("gate_proj", "up_proj", "down_proj")
        if mlp is None or not all(hasattr(mlp, name) for name in names):
            raise UnikeError(f"{self.source}: feed-forward of {type(layer).__name__} is neither fc1/fc2 nor gated")
        return FFNSite(mlp, mlp, {name: getattr(mlp, name) for name in names}, gated=True)

    def attention(self, i: int) -> AttentionSite:
        """The self-attention of layer ``i``."""
        layer: Any = self.layers[self.layer_index(i)]
        module: Any = getattr(layer, "self_attn", None)
        o_proj = getattr(module, "o_proj", None) or getattr(module, "out_proj", None)
        if o_proj is None or not all(hasattr(module, name) for name in ("q_proj", "k_proj", "v_proj", "head_dim")):
            raise UnikeError(f"{self.source}: attention of {type(layer).__name__} has no separate q, k, v and o maps")
        head_dim = int(module.head_dim)
        return AttentionSite(
            module,
            module.q_proj,
            module.k_proj,
            module.v_proj,
            o_proj,
            getattr(module, "q_norm", None),
            getattr(module, "k_norm", None),
            n_heads=module.q_proj.out_features // head_dim,
            n_kv_heads=module.k_proj.out_features // head_dim,
            head_dim=head_dim,
            scale=float(getattr(module, "scaling", head_dim**-0.5)),
        )

    def input_norm(self, i: int) -> nn.Module:
        """The norm in front of layer ``i``'s attention."""
        layer: Any = self.layers[self.layer_index(i)]
        norm = getattr(layer, "input_layernorm", None) or getattr(layer, "self_attn_layer_norm", None)
        if norm is None or not getattr(layer, "do_layer_norm_before", True):
            raise UnikeError(f"{self.source}: {type(layer).__name__} has no norm in front of its attention")
        found: nn.Module = norm
        return found


def find_text_stack(model: Any, source: str) -> Any:
    """Unwrap a model until something has a list of layers; ``get_decoder`` is not consistent between families."""
    node = model
    while node is not None:
        if isinstance(getattr(node, "layers", None), nn.ModuleList):
            return node
        children = (getattr(node, name, None) for name in ("language_model", "text_model", "model", "decoder"))
        node = next((child for child in children if isinstance(child, nn.Module)), None)
    raise UnikeError(f"{source}: {type(model).__name__} has no decoder with a list of layers and cannot be edited")
