"""Training an encoder with Adam until triplets that are held out no longer gain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unike.editors.unike.spaces import Encoder


@dataclass(frozen=True)
class Epoch:
    """Mean losses over a pass through the triplets, and then on those held out."""

    train: float
    held_out: float


def best_epoch(history: Sequence[Epoch]) -> int:
    """The one with the least loss on held-out triplets."""
    return min(range(len(history)), key=lambda epoch: history[epoch].held_out)


def weights_of(encoder: Encoder) -> dict[str, Tensor]:
    """A copy of them."""
    return {name: weight.detach().clone() for name, weight in encoder.state_dict().items()}


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

    with torch.no_grad():
        parts = train.tensor_split(steps)
        history = [Epoch(sum(measured(part).item() for part in parts) / steps, measured(test).item())]
    best = weights_of(encoder)
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
        if best_epoch(history) == epoch:
            best = weights_of(encoder)
        elif epoch - best_epoch(history) >= patience:
            break
    encoder.load_state_dict(best)
    return encoder.eval().requires_grad_(False), history
