"""Disentangling in-context knowledge into a semantic and a truthfulness space (section 3.3: Eq. 4, 5, zeta of Eq. 6).

A triplet is a question about an image with a true and a false answer; ``h_pos`` and ``h_neg`` are the states behind
either. Two small encoders look at them. In the space of the truthfulness encoder ``f``, true answers are together and
false ones elsewhere, whatever they are about; in that of the semantic encoder ``g``, both answers of a triplet are
where its question is. The first gives ``zeta``, the direction from false to true; the second measures how relevant
injected knowledge is (`unike.editors.unike.memory.DynamicAlpha`).

Everything here is plain tensors; T is a number of triplets, ``d`` the width of the truthfulness space.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

# ---------------------------------------------------------------------- encoders and their losses


class Encoder(nn.Module):
    """``Linear -> GELU -> Linear``, as ``f = Enc_tru`` and ``g = Enc_sem``.

    Args:
        width: D, of the states.
        hidden: Of the layer between.
        out: ``d``; for ``g`` it is D, because Eq. 5 and 7 compare its output with states.
        seed: Of the initial weights; the global generator is left alone.

    Note:
        The paper says no more than "encoder"; its released code has two linear maps with nothing between.
    """

    def __init__(self, width: int, hidden: int, out: int, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.utils.skip_init(nn.Linear, width, hidden)
        self.outer = nn.utils.skip_init(nn.Linear, hidden, out)
        for linear in (self.inner, self.outer):
            bound = linear.in_features**-0.5
            for parameter in (linear.weight, linear.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> Self:
        """An encoder that is ready to be used, from the ``state_dict`` of another."""
        hidden, width = weights["inner.weight"].shape
        encoder = cls(width, hidden, len(weights["outer.bias"])).to(weights["outer.bias"].device)
        encoder.load_state_dict(weights)
        return encoder.eval().requires_grad_(False)

    @torch.no_grad()
    def standardise(self, states: Tensor) -> Self:
        """Start from standardised states ``[M, D]``: their mean and spread go into the first map.

        Layers and models differ in the scale of their states by orders of magnitude; the learning rate does not.
        """
        spread = states.std(dim=0)
        self.inner.weight /= spread.clamp(min=1e-3 * spread.mean() + 1e-6)  # a dimension may be constant
        self.inner.bias -= self.inner.weight @ states.mean(dim=0)
        return self

    def forward(self, states: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., out]``."""
        encoded: Tensor = self.outer(F.gelu(self.inner(states)))
        return encoded


def truthfulness_loss(pos: Tensor, neg: Tensor, tau: float = 0.1) -> Tensor:
    """Eq. 4: pull true answers towards true ones and false towards false, whatever they are about.

    With ``P`` and ``N`` the T encoded true and false answers and ``s(a, b) = cos(a, b) / tau``::

        L1 = 1/T sum_i ( - log  sum_{h in P, h != p_i} exp s(p_i, h) / sum_{h in P + N, h != p_i} exp s(p_i, h)
                         - log  sum_{h in N, h != n_i} exp s(n_i, h) / sum_{h in P + N, h != n_i} exp s(n_i, h) )

    Args:
        pos: ``[T, d]``, ``f(h_pos)``.
        neg: ``[T, d]``, ``f(h_neg)``.
        tau: Temperature.

    Returns:
        A scalar.

    Raises:
        ValueError: T is 1: an answer has nothing to be like.

    Note:
        As printed, the sums include ``h = p_i``, whose similarity with itself is constant and, at a small ``tau``,
        outweighs the rest; here it is left out. The mean over triplets replaces the sum, so that batches of any size
        weigh the same.
    """
    if len(pos) < 2:
        raise ValueError("Eq. 4 needs at least two triplets")
    points = F.normalize(torch.cat([pos, neg]), dim=-1)
    true = torch.arange(len(points), device=points.device) < len(pos)
    itself = torch.eye(len(points), dtype=torch.bool, device=points.device)
    similarity = (points @ points.T / tau).masked_fill(itself, -torch.inf)  # [2T, 2T]
    alike = similarity.masked_fill(true.unsqueeze(0) != true.unsqueeze(1), -torch.inf)
    return (similarity.logsumexp(dim=1) - alike.logsumexp(dim=1)).sum() / len(pos)


def semantic_loss(sem: Tensor, pos: Tensor, neg: Tensor, tau: float = 0.1) -> Tensor:
    """Eq. 5: pull both answers of a triplet towards its question, and away from the other questions.

    With ``s(a, b) = cos(a, b) / tau``::

        L2 = 1/T sum_i - log (exp s(q_i, p_i) + exp s(q_i, n_i)) / sum_j (exp s(q_i, p_j) + exp s(q_i, n_j))

    Args:
        sem: ``[T, D]``, the anchors ``q``: states at the end of the question, not encoded.
        pos: ``[T, D]``, ``p``: encoded states behind true answers.
        neg: ``[T, D]``, ``n``: encoded states behind false answers.
        tau: Temperature.

    Returns:
        A scalar; the mean over triplets replaces the sum.
    """
    anchors = F.normalize(sem, dim=-1)
    to_pos, to_neg = (anchors @ F.normalize(answers, dim=-1).T / tau for answers in (pos, neg))  # [T, T]
    own = torch.logaddexp(to_pos.diagonal(), to_neg.diagonal())
    return (torch.cat([to_pos, to_neg], dim=1).logsumexp(dim=1) - own).mean()


# ---------------------------------------------------------------------- the direction of truth


def zeta(f_pos: Tensor, f_neg: Tensor) -> Tensor:
    """``zeta = mean f(h_pos) - mean f(h_neg)`` (before Eq. 6), from the centre of falsehood to that of truth.

    Args:
        f_pos: ``[T, d]``.
        f_neg: ``[T, d]``.

    Returns:
        ``[d]``.
    """
    return f_pos.mean(dim=0) - f_neg.mean(dim=0)


def fit_w_zeta(delta: Tensor, write: Tensor, ridge: float = 1e-2) -> Tensor:
    """``W_zeta`` of ``zeta' = W_zeta zeta``: from the truthfulness space to the one that ``V`` of Eq. 6 writes to.

    Ridge regression in closed form, without an intercept (no difference in truth, nothing to write)::

        W = write^T delta (delta^T delta + ridge * m I)^-1,   m = the mean of delta^T delta's diagonal

    Args:
        delta: ``[T, d]``, ``f(h_pos) - f(h_neg)``.
        write: ``[T, D]``, what the feed-forward network writes behind the true answer minus what it writes behind the
            false one.
        ridge: Relative to the scale of ``delta``.

    Returns:
        ``[D, d]``.

    Note:
        In the paper ``W_zeta`` is learnable and no more is said. Learned during an edit, with ``zeta`` constant,
        ``zeta'`` could become any vector at all, and would carry nothing of ``zeta``; so it is fitted beforehand and
        stays as it is.
    """
    delta, write = delta.double(), write.double()
    gram = delta.T @ delta
    scale = gram.diagonal().mean().clamp(min=1e-12)
    regularised = gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(regularised, delta.T @ write).T.float().contiguous()
