"""The network that says what a question asks: it reads MiniLM's states of the question's tokens.

A sentence encoder makes one vector of a text, in which "Which continent is the country with this flag on?" lies beside
"Which country has this flag?". Token by token they are told apart. The network is small, for what a text says has
been worked out below; it was trained by ``scripts/gate/words.py``.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

ASKED_WIDTH = 256
"""Numbers that say what is asked."""

LAYERS = (3, 6)
"""Of MiniLM, whose states are read side by side."""

LONGEST = 48
"""Tokens of a text that are read, at most."""

WIDTH, HEADS, QUERIES = 256, 4, 4


class AskedNetwork(nn.Module):
    """A layer of attention among tokens, what four learned queries find there, and the tokens' mean.

    Args:
        width: Of the states of a token.
        dropout: In training, of what the queries find.
    """

    def __init__(self, width: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(width, WIDTH), nn.LayerNorm(WIDTH)
        more: dict[str, Any] = {"batch_first": True, "norm_first": True, "activation": "gelu"}
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.1, **more)
        self.queries = nn.Parameter(torch.randn(QUERIES, WIDTH) / WIDTH**0.5)
        self.leave, self.skip = (nn.Linear(wide, ASKED_WIDTH, bias=False) for wide in (QUERIES * WIDTH, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, there: Tensor) -> Tensor:
        """Unit vectors.

        Args:
            states: ``[n, T, width]``.
            there: ``[n, T]`` bool, which of them are of the text's tokens.

        Returns:
            ``[n, ASKED_WIDTH]``.
        """
        tokens = self.layer(self.norm(self.enter(states)), src_key_padding_mask=~there)
        shares = (tokens @ self.queries.T).masked_fill(~there.unsqueeze(-1), -torch.inf).softmax(dim=1)
        found = (shares.transpose(1, 2) @ tokens).flatten(1)
        mean = normalize((states * there.unsqueeze(-1)).sum(dim=1), dim=-1)
        return normalize(self.leave(self.dropout(found)) + self.skip(mean), dim=-1)


def padded(states: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Texts' states ``[T_i, width]`` in one batch, as `AskedNetwork` reads them."""
    length = max(map(len, states))
    together, there = torch.zeros(len(states), length, states[0].shape[1]), torch.zeros(len(states), length)
    for row, each in enumerate(states):
        together[row, : len(each)], there[row, : len(each)] = each, 1
    return together, there.bool()
