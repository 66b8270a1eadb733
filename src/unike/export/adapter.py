"""LoRA adapters, by PEFT: the one place that imports it."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.export.updates import Factors, names_of

ADAPTER = "default"
"""What PEFT calls the only adapter of a model."""


def check_peft() -> None:
    """Refuse what needs PEFT where it is not installed.

    Raises:
        UnikeError: It is not.
    """
    if importlib.util.find_spec("peft") is None:
        raise UnikeError("to export a LoRA, or what has to be learned as one, peft is needed; run: pip install peft")


def check_bare(backbone: Backbone) -> None:
    """Refuse a model that has an adapter already, which would be taken off with ours.

    Raises:
        UnikeError: It has one.
    """
    if any(hasattr(module, "base_layer") for module in backbone.model.modules()):
        raise UnikeError(f"{backbone.source} has a PEFT adapter on it; merge that (merge_and_unload) before an export")


@contextmanager
def quietly() -> Iterator[None]:
    """PEFT warns of what transformers has renamed, and bitsandbytes of kernels; neither is the user's to mend."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def own_generator(backbone: Backbone, seed: int) -> Iterator[None]:
    """Within the block random numbers depend on the seed alone, and after it the global generator is where it was."""
    with torch.random.fork_rng(devices=[backbone.device] if backbone.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def lora_on(
    backbone: Backbone, linears: Sequence[nn.Linear], rank: int, seed: int = 0
) -> Iterator[tuple[Any, list[Any]]]:
    """Within the block a new LoRA, which does nothing yet, is on a model; then it is what it was.

    Args:
        backbone: The model.
        linears: The maps that it is on.
        rank: Of each.
        seed: Of its start; the global generator is left alone.

    Yields:
        The PEFT model, and the layer of each map, in their order.
    """
    names = names_of(backbone, linears)
    with quietly():
        import peft
    config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names, bias="none")
    with quietly():
        with own_generator(backbone, seed):
            model: Any = peft.get_peft_model(backbone.model, config)
        config.base_model_name_or_path = backbone.source
        model.eval()
        try:
            yield model, [backbone.model.get_submodule(name) for name in names]
        finally:
            taken_off(backbone, model)


def taken_off(backbone: Backbone, model: Any) -> None:
    """Take an adapter off a model, and with it what PEFT has noted on it."""
    model.unload()
    for name in ("peft_config", "_hf_peft_config_loaded"):
        vars(backbone.model).pop(name, None)
    backbone.model.eval().requires_grad_(False)


@torch.no_grad()
def write_adapter(backbone: Backbone, factors: Sequence[Factors], folder: Path) -> int:
    """Write a PEFT adapter: ``adapter_config.json`` and ``adapter_model.safetensors``.

    All maps have the largest rank of any, and those of a lower one end with zeros: programs that serve adapters want
    one rank, and with ``lora_alpha`` equal to it nothing is scaled.

    Args:
        backbone: The model, which is left as it was.
        factors: Of each map.
        folder: An empty one.

    Returns:
        The rank.
    """
    rank = max(len(each.reads) for each in factors)
    with lora_on(backbone, [each.linear for each in factors], rank) as (model, layers):
        for each, layer in zip(factors, layers, strict=True):
            down, up = layer.lora_A[ADAPTER].weight.zero_(), layer.lora_B[ADAPTER].weight.zero_()
            down[: len(each.reads)] = each.reads.to(down)
            up[:, : len(each.writes)] = each.writes.T.to(up)
        model.save_pretrained(str(folder), save_embedding_layers=False)  # else the hub is asked about the vocabulary
    return rank


@contextmanager
def adapter_of(backbone: Backbone, folder: Path) -> Iterator[None]:
    """Within the block a saved adapter is on a model, as whoever loads it would have it."""
    with quietly():
        import peft

        with own_generator(backbone, 0):  # it draws weights before it reads them
            model = peft.PeftModel.from_pretrained(backbone.model, str(folder))
        try:
            yield
        finally:
            taken_off(backbone, model)
