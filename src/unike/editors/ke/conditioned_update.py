"""KnowledgeEditor's network: an update of a weight from its gradient and a text (De Cao et al., arXiv 2104.08164).

An LSTM reads what is to change, and for each matrix a small network makes vectors of its output: ``alpha, gamma`` as
long as a row of the weight ``[m, n]``, ``a, b`` as long as a column, and a number ``eta``. With ``G`` the gradient::

    dW = max_scale * sigmoid(eta) * (softmax(a) alpha^T * G + softmax(b) gamma^T)

An elementwise product with a matrix of rank one scales rows and columns, so that for ``G = sum_t d_t u_t^T`` the update
has the factors ``(softmax(a) * d_t, alpha * u_t)`` and one more, ``(softmax(b), gamma)``: rank T + 1.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from unike.editors.trained.hypernetwork import Factors, Hypernetwork
from unike.editors.trained.token_gradients import TokenGradients

HIDDEN = 128
"""Width of the LSTM in each direction, and of the layer in front of the vectors."""

CONDITION = 1024
"""Width of what is made of a text."""


class TextCondition(nn.Module):
    """A bidirectional LSTM over embedded texts, its last states mapped to a vector.

    Args:
        width: Of the embeddings.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, HIDDEN, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * HIDDEN, CONDITION)

    def forward(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """``[B, L, width]`` with ``lengths [B]`` to ``[B, CONDITION]``."""
        packed = nn.utils.rnn.pack_padded_sequence(embeddings, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)  # [2, B, HIDDEN]
        condition: Tensor = torch.tanh(self.linear(last.transpose(0, 1).flatten(1)))
        return condition


class ConditionedMatrix(nn.Module):
    """What makes the update of one matrix.

    Args:
        reads: ``n``, its input width.
        writes: ``m``, its output width.
        max_scale: The largest factor of an update.
    """

    def __init__(self, reads: int, writes: int, max_scale: float) -> None:
        super().__init__()
        self.sizes, self.max_scale = [reads, writes, reads, writes, 1], max_scale
        self.inner = weight_norm(nn.Linear(CONDITION, HIDDEN))
        self.outer = weight_norm(nn.Linear(HIDDEN, sum(self.sizes)))

    def vectors(self, condition: Tensor) -> list[Tensor]:
        """``alpha [B, n], softmax(a) [B, m], gamma [B, n], softmax(b) [B, m]`` and the scale ``[B, 1]``."""
        parts = self.outer(torch.tanh(self.inner(condition))).split(self.sizes, dim=-1)
        alpha, a, gamma, b, eta = parts
        return [alpha, a.softmax(dim=-1), gamma, b.softmax(dim=-1), self.max_scale * torch.sigmoid(eta)]

    def forward(self, condition: Tensor, gradients: TokenGradients) -> Factors:
        """The update's factors, of rank T + 1, from ``condition [B, CONDITION]``."""
        alpha, a, gamma, b, scale = (part.unsqueeze(1) for part in self.vectors(condition))
        reads = torch.cat([gamma, alpha * gradients.inputs], dim=1)
        writes = torch.cat([b, a * gradients.gradients], dim=1)
        return reads, scale * writes


class ConditionedUpdates(Hypernetwork):
    """The networks of several matrices, with one reader of texts.

    Beside these it holds what its training needs: the multiplier of the constraint, and the margin.

    Args:
        matrices: As in `Hypernetwork`.
        width: Of the embeddings of texts.
        max_scale: As in `ConditionedMatrix`.
        margin: Of the constraint, at first.
        seed: Of the start; the global generator is left alone.
    """

    margin: Tensor

    def __init__(
        self,
        matrices: Mapping[str, tuple[int, int]],
        width: int,
        *,
        max_scale: float = 1.0,
        margin: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(matrices)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.condition = TextCondition(width)
            # the names of modules may hold no dots
            self.conditioned = nn.ModuleDict(
                {
                    name.replace(".", "-"): ConditionedMatrix(reads, writes, max_scale)
                    for name, (reads, writes) in matrices.items()
                }
            )
        self.multiplier = nn.Parameter(torch.ones(()))
        self.register_buffer("margin", torch.tensor(margin))

    def forward(
        self, gradients: Mapping[str, TokenGradients], embeddings: Tensor, lengths: Tensor
    ) -> dict[str, Factors]:
        """The update of each matrix, given embedded texts ``[B, L, width]`` of ``lengths [B]``."""
        condition = self.condition(embeddings, lengths)
        return {name: self.conditioned[name.replace(".", "-")](condition, gradients[name]) for name in self.matrices}
