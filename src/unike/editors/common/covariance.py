"""The shrunken covariance of states, and what undoes it: its inverse and its inverse square root.

With fewer states than dimensions a sample's covariance cannot be inverted, so the identity is mixed in (Ledoit and
Wolf, 2004), as large as the mean variance::

    C_s = (1 - s) C + s tr(C) / D I
"""

import torch
from torch import Tensor

NO_SPREAD = 1e-8
"""The least mean variance that counts: a single state has none."""


def shrunken_covariance(states: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """The mean ``[D]`` of states ``[M, D]``, and ``C_s``, ``[D, D]``, in the precision of the states.

    Args:
        states: M of them.
        shrinkage: ``s``, in 0..1: near 0 the sample's own covariance, at 1 a multiple of the identity.
    """
    mean = states.mean(dim=0)
    centred = states - mean
    return mean, shrunken(centred.T @ centred / len(states), shrinkage)


def shrunken(covariance: Tensor, shrinkage: float) -> Tensor:
    """``C_s`` of a sample's covariance ``[D, D]``."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    scale = covariance.diagonal().mean().clamp(min=NO_SPREAD)
    return (1 - shrinkage) * covariance + shrinkage * scale * identity


def precision(states: Tensor, shrinkage: float) -> Tensor:
    """``C_s^-1`` of states ``[M, D]``: ``[D, D]``, in the precision of the states."""
    return torch.linalg.inv(shrunken_covariance(states, shrinkage)[1])


def inverse_root(covariance: Tensor) -> Tensor:
    """``C^(-1/2)`` of a covariance ``[D, D]``; fp32, worked out in double precision."""
    variances, directions = torch.linalg.eigh(covariance.double())
    return (directions * variances.clamp(min=1e-12).rsqrt() @ directions.T).float()
