"""The inner loop of every gradient-based edit: a fixed number of Adam steps on B independent sets of parameters."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def optimise(
    parameters: Sequence[Tensor],
    loss: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
    clip: float | None = None,
    weight_decay: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Minimise a per-edit loss in place.

    The losses are summed over edits and Adam is elementwise, so B edits in one pass take the steps that they
    would take alone.

    Args:
        parameters: Leaf tensors ``[B, ...]`` that require gradients.
        loss: Computes ``[B]``, one loss an edit.
        steps: How many.
        lr: Learning rate of Adam.
        clip: Largest norm of one edit's gradient over all its parameters, or None.
        weight_decay: Of Adam: so much of a parameter is added to its gradient.
        stop: Asked after each loss; true ends the loop before the step.

    Returns:
        ``[steps, B]``, the loss before each step that was taken, or would have been when it was stopped.
    """
    adam = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    history = []
    for _ in range(steps):
        adam.zero_grad()
        with torch.enable_grad():
            losses = loss()
            history.append(losses.detach())
            if stop():
                break
            losses.sum().backward()
        if clip is not None:
            clip_rows(parameters, clip)
        adam.step()
    return torch.stack(history) if history else torch.zeros(0, len(parameters[0]))


def clip_rows(parameters: Sequence[Tensor], limit: float) -> None:
    """Scale each edit's gradient down to a norm of at most ``limit``."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)  # [B]
    scale = (limit / norms.clamp(min=1e-12)).clamp(max=1.0)
    for grad in grads:
        grad *= scale.reshape(-1, *[1] * (grad.ndim - 1))
