"""Disentangling in-context knowledge into a semantic and a truthfulness space (section 3.3: Eq. 4, 5, zeta of Eq. 6).

A triplet is a question about an image with a true and a false answer; ``h_pos`` and ``h_neg`` are the states behind
either. Two small encoders look at them. In the space of the truthfulness encoder ``f``, true answers are together and
false ones elsewhere, whatever they are about; in that of the semantic encoder ``g``, both answers of a triplet are
where its question is. The first gives ``zeta``, the direction from false to true; the second measures how relevant
injected knowledge is (`unike.editors.unike.memory.DynamicAlpha`).

Everything here is plain tensors; T is a number of triplets, ``d`` the width of the truthfulness space.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from unike.core.errors import UnikeError

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


def retrieval_accuracy(sem: Tensor, pos: Tensor) -> float:
    """How often the encoded state nearest to a question, by cosine, is that of its own answer.

    Args:
        sem: ``[T, D]``, anchors as in `semantic_loss`.
        pos: ``[T, D]``, encoded.
    """
    nearest = (F.normalize(sem, dim=-1) @ F.normalize(pos, dim=-1).T).argmax(dim=1)
    return (nearest == torch.arange(len(sem), device=nearest.device)).float().mean().item()


# ---------------------------------------------------------------------- training


@dataclass(frozen=True)
class Epoch:
    """Mean losses over a pass through the triplets, and then on those held out."""

    train: float
    held_out: float


def train_encoder(
    encoder: Encoder,
    loss: Callable[..., Tensor],
    columns: Sequence[Tensor],
    held_out: Tensor,
    *,
    lr: float = 1e-4,
    batch: int = 256,
    max_epochs: int = 200,
    patience: int = 10,
    seed: int = 0,
    progress: Callable[[int], None] = lambda epoch: None,
) -> tuple[Encoder, list[Epoch]]:
    """Train an encoder in place with Adam until triplets that are held out no longer gain; the best weights are kept.

    Args:
        encoder: Is changed, and returned in eval mode without gradients.
        loss: Called as ``loss(encoder, *rows)`` with the same rows of every column.
        columns: ``[T, ...]`` each, what the loss needs to know of the triplets.
        held_out: ``[T]`` bool, which triplets to stop by.
        lr: Learning rate (paper: 1e-4).
        batch: Triplets a step, at most; an epoch's steps are of equal size.
        max_epochs: At most so many.
        patience: Stop after so many epochs without a new best.
        seed: Of the order.
        progress: Called with the number of each epoch that is finished.

    Returns:
        The encoder, and every epoch's losses; the first are those before any step.
    """
    train, test = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    steps = -(-len(train) // batch)
    adam = torch.optim.Adam(encoder.parameters(), lr=lr)

    def measured(rows: Tensor) -> Tensor:
        return loss(encoder, *(column[rows] for column in columns))

    def best_of(history: Sequence[Epoch]) -> int:
        return min(range(len(history)), key=lambda epoch: history[epoch].held_out)

    def copied() -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in encoder.state_dict().items()}

    with torch.no_grad():
        parts = train.tensor_split(steps)
        history = [Epoch(sum(measured(part).item() for part in parts) / steps, measured(test).item())]
    best = copied()
    for epoch in range(1, max_epochs + 1):
        total = 0.0
        for rows in train[torch.randperm(len(train), generator=generator).to(train.device)].tensor_split(steps):
            adam.zero_grad()
            step_loss = measured(rows)
            step_loss.backward()
            adam.step()
            total += step_loss.item()
        with torch.no_grad():
            history.append(Epoch(total / steps, measured(test).item()))
        progress(epoch)
        if best_of(history) == epoch:
            best = copied()
        elif epoch - best_of(history) >= patience:
            break
    encoder.load_state_dict(best)
    return encoder.eval().requires_grad_(False), history


def hold_out(groups: Sequence[str], part: float = 0.1, *, seed: int = 0) -> Tensor:
    """Which items to hold out, ``[T]`` bool: whole groups at random, until they make up the part that is wanted.

    Args:
        groups: T names, for example of the images that triplets are about.
        part: Of the items.
        seed: Of the choice.

    Raises:
        UnikeError: There are not enough groups for two triplets on either side.
    """
    sizes = Counter(groups)
    names = sorted(sizes)
    chosen: set[str] = set()
    held = 0
    for index in torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist():
        if held >= max(2, part * len(groups)):
            break
        chosen.add(names[index])
        held += sizes[names[index]]
    if held < 2 or len(groups) - held < 2:
        raise UnikeError(f"{len(groups)} of {len(names)} kinds are too few to hold some out; collect more triplets")
    return torch.tensor([group in chosen for group in groups])


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


# ---------------------------------------------------------------------- what an encoder has learned


@dataclass(frozen=True, eq=False)
class AnswerSplit:
    """A split of true and false answers such that none of the answers tested on is seen in training.

    Args:
        train: ``[T]`` bool, the triplets neither of whose answers is tested on.
        test_pos: ``[T]`` bool, whose true answer is tested on.
        test_neg: ``[T]`` bool, whose false answer is; as many as true ones.
        n_tested: How many different answers are set aside.
    """

    train: Tensor
    test_pos: Tensor
    test_neg: Tensor
    n_tested: int


def split_by_answer(
    positive: Sequence[str], negative: Sequence[str], part: float = 0.2, *, seed: int = 0
) -> AnswerSplit:
    """Set answers aside, at random, until they make up the part that is wanted.

    Args:
        positive: The true answers of T triplets.
        negative: Their false answers.
        part: Of the 2T states.
        seed: Of the choice.

    Raises:
        UnikeError: Too few answers, or too few that are on one side only.
    """
    answers = [*positive, *negative]
    aside = hold_out(answers, part, seed=seed)
    pos, neg = aside[: len(positive)], aside[len(positive) :]
    generator = torch.Generator().manual_seed(seed)

    def some(mask: Tensor, count: int) -> Tensor:
        found = mask.nonzero()[:, 0]
        kept = torch.zeros_like(mask)
        kept[found[torch.randperm(len(found), generator=generator)[:count]]] = True
        return kept

    train, count = ~(pos | neg), min(int(pos.sum()), int(neg.sum()))
    if not count or train.sum() < 4:
        raise UnikeError(f"{len(positive)} triplets have too few different answers to set some aside; collect more")
    n_tested = len({answer for answer, is_aside in zip(answers, aside.tolist(), strict=True) if is_aside})
    return AnswerSplit(train, some(pos, count), some(neg, count), n_tested)


def probe_accuracy(pos: Tensor, neg: Tensor, split: AnswerSplit) -> tuple[float, int]:
    """How well a linear probe tells true answers from false ones that it has never seen; chance is 0.5.

    Of answers that occur in training, a probe, or an encoder before it, may simply remember which are true. So states
    must come from an encoder that was trained on ``split.train`` alone, if it was trained at all.

    Args:
        pos: ``[T, d]``, states behind true answers, or what an encoder makes of them.
        neg: ``[T, d]``, the same of false answers.
        split: From `split_by_answer`.

    Returns:
        The accuracy, and the number of states it was measured on.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def rows(true: Tensor, false: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.cat([torch.ones(int(true.sum())), torch.zeros(int(false.sum()))])
        return torch.cat([pos[true], neg[false]]).float().cpu(), labels

    (train, known), (test, unknown) = rows(split.train, split.train), rows(split.test_pos, split.test_neg)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    probe.fit(train.numpy(), known.numpy())
    return float(probe.score(test.numpy(), unknown.numpy())), len(test)
