"""The new key-value pairs of an edit: where they start, what moves them, and what relevance does to them (Eq. 1, 3, 6).

Note:
    The paper does not say how keys start. T-Patcher, which it builds on, takes ``k = q_e / |q_e|^2`` for the network's
    input ``q_e`` where a wrong answer token is predicted (``key_init="raw"``); nearly every input activates such a key,
    because the inputs of a layer share a large mean. ``"centred"`` measures from the mean of *anchors*, unrelated
    inputs, ``"whitened"`` also by their covariance ``C``: with ``d = q_e - mean``, ``k ~ C^-1 d`` is the linear
    discriminant between the edit and the anchors. Each is scaled so that ``q_e`` activates its key by 1 and an input
    that is less than ``threshold`` of the way from the mean to ``q_e``, along the key, not at all.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from unike.backbones.forward.context import Prefill
from unike.backbones.forward.hooks import Hooks
from unike.editors.common.covariance import precision
from unike.editors.common.pairs import PARTS, FFNPatch, PairGate, install_patch
from unike.editors.unike.config import PairSettings, UniKEConfig
from unike.editors.unike.gate import Openings
from unike.edits.group import Group


def install_pairs(group: Group, hooks: Hooks, prefill: Prefill, gate: Callable[[], Openings] | None) -> None:
    """Put the pairs of a stack beside the networks of the edited layers, for one pass.

    Args:
        group: Whose pairs.
        hooks: Where the hooks are kept.
        prefill: The pass.
        gate: How far each row is about each edit, asked for when a layer runs; None for no gate.
    """
    config: UniKEConfig = group.config
    scale = None if gate is None else partial(scale_of_pairs, gate, config)
    for layer in config.layers:
        patch = partial(called_pairs, group, layer, gate, prefill)
        install_patch(patch, group.backbone.ffn(layer), hooks, scale, partial(taking_effect, prefill, config))


def called_pairs(group: Group, layer: int, gate: Callable[[], Openings] | None, prefill: Prefill) -> FFNPatch | None:
    """The pairs of those edits that any row calls upon: those of all others would add nothing."""
    if gate is not None:
        called = gate().called
        if not called:
            prefill.note("activation", torch.zeros(len(prefill.prompt_last), device=group.backbone.device))
            return None
        group = group.part(called)
    return group.once(("pairs", layer), partial(patch_of, group, layer))


def patch_of(group: Group, layer: int) -> FFNPatch:
    """The pairs of several edits at a layer, their values moved in the direction of truth (Eq. 6)."""
    keys, bias, values = (group.side_by_side(f"{layer}.{part}") for part in PARTS)
    if f"{layer}.shift" in group.edits[0].tensors:
        shift = group.side_by_side(f"{layer}.shift")
        values = values + shift.repeat_interleave(values.shape[1] // shift.shape[1], dim=1)
    return FFNPatch(keys, bias, values, len(group))


def scale_of_pairs(gate: Callable[[], Openings], config: UniKEConfig) -> PairGate:
    """What relevance does to the pairs of called edits: the gate scales them, a like question wakes them sooner.

    Args:
        gate: Of G edits.
        config: For N and the slack.
    """
    openings = gate()
    called = (each[:, list(openings.called)] for each in (openings.gate, openings.question))
    own, question = (each.repeat_interleave(config.pairs.n, dim=1) for each in called)
    return PairGate(own, config.gate.slack * question)


def taking_effect(prefill: Prefill, config: UniKEConfig, activations: Tensor) -> Tensor:
    """Of the pairs' activations ``[B, T, N]``, those that take effect; the strongest for each prompt is noted."""
    if not config.everywhere:
        since = prefill.from_prompt_last(activations.flatten(0, 1))  # [B * T, 1]
        activations = activations * since.reshape(*activations.shape[:2], 1)
    prefill.note("activation", activations.reshape(len(prefill.prompt_last), -1).amax(dim=1))
    return activations


# ---------------------------------------------------------------------- where keys start


def blurred(q: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Inputs ``[B, N, D]`` with noise relative to their length, so that keys of one position differ."""
    # one draw for all rows, so that a batch equals single edits
    drawn = torch.randn(q.shape[1:], generator=generator).to(q) / q.shape[-1] ** 0.5
    return q + noise * q.norm(dim=-1, keepdim=True) * drawn


def keys_firing_at(q: Tensor, anchors: Tensor | None, settings: PairSettings) -> tuple[Tensor, Tensor]:
    """Keys ``[B, N, D]`` and biases ``[B, N]`` for the inputs ``q [B, N, D]`` they are to fire at.

    ``a(x) = (k (x - mean) - t) / (1 - t)`` with ``k (q_e - mean) = 1`` and ``t`` the threshold.

    Args:
        q: FFN inputs in fp32.
        anchors: FFN inputs of unrelated questions, ``[M, D]``, or None.
        settings: Of the pairs.
    """
    mean = q.new_zeros(q.shape[-1]) if anchors is None or settings.key_init == "raw" else anchors.mean(dim=0)
    d = q - mean
    k = d if anchors is None or settings.key_init != "whitened" else d @ precision(anchors, settings.shrinkage)
    k = k / (k * d).sum(dim=-1, keepdim=True).clamp(min=1e-8)
    return k / (1 - settings.threshold), (-(k @ mean) - settings.threshold) / (1 - settings.threshold)


# ---------------------------------------------------------------------- what is kept of them


def as_one(part: Tensor, where: Tensor) -> Tensor:
    """Pairs that were trained to fire at one position of an answer, each as their mean.

    An answer has fewer tokens than an edit has pairs, so some are copies of one another but for the noise that they
    started with, and stay so (within a thousandth). As copies to the bit they are kept once (`unike.edits.files`).

    Args:
        part: Of the pairs, ``[B, N, ...]``.
        where: The position at which each is to fire, ``[B, N]``.
    """
    alike = where.unsqueeze(2) == where.unsqueeze(1)
    share = alike.to(part) / alike.sum(dim=2, keepdim=True)
    mean = torch.einsum("bmn,bn...->bm...", share, part)
    return mean[torch.arange(len(part), device=part.device).unsqueeze(1), alike.int().argmax(dim=2)]
