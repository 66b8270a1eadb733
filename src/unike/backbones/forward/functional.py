"""Pure functions of logits and labels: which positions count, and what is computed on them.

A causal model predicts the token at position ``s`` with the logits at ``s - 1``. That shift is written here once.
"""

import torch
from torch import Tensor

from unike.backbones.forward.split import IGNORE


def target_positions(labels: Tensor) -> Tensor:
    """The positions whose logits predict target tokens.

    Args:
        labels: ``[B, S]`` long, `IGNORE` outside the target.

    Returns:
        ``[B, S]`` bool, true at ``s`` where ``labels[:, s + 1]`` is a target token. Read row by row, the selected
        positions are in the order of `target_tokens`, so it can be given to ``backbone.run_from_split(state,
        positions=...)``.
    """
    positions = torch.zeros_like(labels, dtype=torch.bool)
    positions[:, :-1] = labels[:, 1:] != IGNORE
    return positions


def target_tokens(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The target tokens of a batch in one line, with the row each belongs to.

    Args:
        labels: ``[B, S]`` long, `IGNORE` outside the target.

    Returns:
        ``rows [n]`` and ``tokens [n]``, row by row, aligned with the positions of `target_positions`.
    """
    shifted = labels[:, 1:]
    rows, columns = (shifted != IGNORE).nonzero(as_tuple=True)
    return rows, shifted[rows, columns]


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of each row's target, in fp32.

    Args:
        logits: ``[B, S, V]``, or ``[n, V]`` at `target_positions` alone.
        labels: ``[B, S]`` long, `IGNORE` outside the target.

    Returns:
        ``[B]`` fp32, in nats per target token; 0 for a row without a target. Rows are independent: a row's value does
        not depend on how many tokens the others have.
    """
    rows, tokens = target_tokens(labels)
    if logits.ndim == 3:
        logits = logits[target_positions(labels)]
    losses = torch.nn.functional.cross_entropy(logits.float(), tokens, reduction="none")
    total = losses.new_zeros(labels.shape[0]).index_add(0, rows, losses)
    count = torch.bincount(rows, minlength=labels.shape[0]).clamp(min=1)
    return total / count


def all_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether every target token of a row is the most likely one, given those before it.

    Args:
        logits: As in `token_nll`.
        labels: ``[B, S]`` long, `IGNORE` outside the target.

    Returns:
        ``[B]`` bool.
    """
    rows, tokens = target_tokens(labels)
    if logits.ndim == 3:
        logits = logits[target_positions(labels)]
    wrong = rows[logits.argmax(dim=-1) != tokens]
    return torch.bincount(wrong, minlength=labels.shape[0]) == 0


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much each row's target is ahead: of its least certain token, over the likeliest other one.

    Args:
        logits: ``[n, V]`` at `target_positions`.
        labels: ``[B, S]`` long, `IGNORE` outside the target.

    Returns:
        ``[B]`` fp32, below 0 where the target would not be said; infinite for a row without a target.
    """
    rows, tokens = target_tokens(labels)
    logits, own = logits.float(), tokens.unsqueeze(1)
    ahead = logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(dim=1)
    least = logits.new_full((labels.shape[0],), torch.inf)
    return least.scatter_reduce(0, rows, ahead, "amin")


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence ``KL(p || q)`` of the distributions two sets of logits stand for, in fp32.

    Args:
        p_logits: ``[..., V]``, the reference.
        q_logits: ``[..., V]``.

    Returns:
        ``[...]`` fp32, in nats.
    """
    p = p_logits.float().log_softmax(dim=-1)
    q = q_logits.float().log_softmax(dim=-1)
    return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)


def cycle(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """For each row of ``mask [B, S]``, ``count`` true positions in turn: rows and columns, ``[B, count]`` each."""
    columns = [row.nonzero()[:, 0] for row in mask]
    chosen = torch.stack([found[torch.arange(count, device=mask.device) % len(found)] for found in columns])
    return torch.arange(len(mask), device=mask.device).unsqueeze(1).expand_as(chosen), chosen


def distinct(rows: Tensor) -> tuple[list[int], list[int]]:
    """Rows that are told apart, bit by bit: the first of each kind, and for every row the number of its kind.

    Args:
        rows: ``[B, ...]``.
    """
    firsts: list[int] = []
    kinds: list[int] = []
    for row in range(len(rows)):
        same = (kind for kind, first in enumerate(firsts) if torch.equal(rows[row], rows[first]))
        kinds.append(next(same, len(firsts)))
        if kinds[-1] == len(firsts):
            firsts.append(row)
    return firsts, kinds
