"""Edits as changes of weights: which linear maps they change, by what, and of what rank."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.core.progress import Progress, silent
from unike.edits.edited import EditedModel
from unike.edits.weights import WeightUpdate

NOISE = 10 * torch.finfo(torch.float32).eps
"""Relative to a change's largest direction: what is smaller is rounding, and no rank is spent on it."""


def exact_updates(model: EditedModel) -> list[WeightUpdate] | None:
    """What the edits in force add to each linear map, one update a map; None if one of them does anything else."""
    found: list[WeightUpdate] = []
    for group in model.within_model.groups:
        updates = type(group.made[0]).weight_updates(group)
        if updates is None:
            return None
        found += updates
    linears = {id(update.linear): update.linear for update in found}
    return [together(linear, [u for u in found if u.linear is linear]) for linear in linears.values()]


def together(linear: nn.Linear, updates: Sequence[WeightUpdate]) -> WeightUpdate:
    """The sum of changes of one map; of factors, side by side."""
    if len(updates) == 1:
        return updates[0]
    parts = [update.reads for update in updates if update.reads is not None]
    if len(parts) < len(updates):
        return WeightUpdate(linear, torch.stack([update.delta for update in updates]).sum(dim=0))
    return WeightUpdate(linear, torch.cat([update.writes for update in updates]), torch.cat(parts))


@dataclass(frozen=True, eq=False)
class Factors:
    """A change as a LoRA has it.

    Args:
        linear: The map.
        reads: ``[R, in]`` fp32.
        writes: ``[R, out]`` fp32.
        lost: What is left out, its norm relative to the whole change's; 0 if nothing is.
    """

    linear: nn.Linear
    reads: Tensor
    writes: Tensor
    lost: float = 0.0


def factorised(
    updates: Sequence[WeightUpdate], rank: int | None, names: Sequence[str], progress: Progress = silent
) -> list[Factors]:
    """Changes as factors, of their own rank or of a lower one.

    Args:
        updates: One a map.
        rank: The largest that is kept; None for all, as far as a LoRA is no larger than the weight itself.
        names: Of the maps, for messages.
        progress: Told how many are done.

    Raises:
        UnikeError: A change is of a rank that makes no LoRA.
    """
    found = []
    for number, (update, name) in enumerate(zip(updates, names, strict=True)):
        progress("factors of the changes", number, len(updates))
        found.append(_factors(update, rank, name))
    progress("factors of the changes", len(updates), len(updates))
    return found


def _factors(update: WeightUpdate, rank: int | None, name: str) -> Factors:
    linear, full = update.linear, min(update.linear.in_features, update.linear.out_features)
    if update.reads is not None and len(update.reads) <= min(rank or full, full):
        return Factors(linear, update.reads, update.writes)
    u, s, v = torch.linalg.svd(update.delta.float(), full_matrices=False)
    own = max(1, int((s > s[:1] * NOISE).sum()))
    sides = linear.in_features + linear.out_features
    if update.reads is None and rank is None and own * sides > linear.in_features * linear.out_features:
        raise UnikeError(
            f"the change of {name} has rank {own} of {full}, so a LoRA of it would be larger than the matrix; use "
            "--format merged, which is exact, or --rank N, which keeps its N largest directions"
        )
    kept = min(own, rank or own)
    scale = s[:kept].sqrt().unsqueeze(1)
    lost = float(s[kept:].norm() / s.norm().clamp(min=1e-30)) if kept < own else 0.0
    return Factors(linear, scale * v[:kept], scale * u.T[:kept], lost)


def names_of(backbone: Backbone, linears: Sequence[nn.Linear]) -> list[str]:
    """What linear maps are called in the model."""
    known = {id(module): name for name, module in backbone.model.named_modules()}
    return [known[id(linear)] for linear in linears]


def check_mergeable(backbone: Backbone) -> None:
    """Refuse a model whose weights cannot be added to and saved.

    Raises:
        UnikeError: They are quantised, or kept elsewhere.
    """
    if backbone.quantize is not None:
        raise UnikeError(
            f"{backbone.source} is kept in {backbone.quantize}, which takes no change of a weight; leave --quantize out"
        )
    if any(weight.is_meta for weight in backbone.model.parameters()):
        raise UnikeError(f"weights of {backbone.source} are kept elsewhere; load it on one device that holds all of it")


@contextmanager
@torch.no_grad()
def merged(updates: Sequence[WeightUpdate]) -> Iterator[None]:
    """Within the block the weights are changed, rounded to what they are kept in; then they are what they were."""
    before = [update.linear.weight.clone() for update in updates]
    try:
        for update in updates:
            weight = update.linear.weight
            weight.copy_((weight.float() + update.delta.to(weight.device)).to(weight.dtype))
        yield
    finally:
        for update, weight in zip(updates, before, strict=True):
            update.linear.weight.copy_(weight)
