"""A map that tells two things by one hand from one thing by two hands, learned by contrast.

Whatever is made by one hand has a look of its own, so that two of its things are more alike than two things usually
are. A map that was learned from few hands takes that for likeness as soon as it meets another. So each step compares
pictures that share a look: all by one made-up hand (`prepare.views`), or those that are nearest to one another anyway.
Each is to be nearer to another picture of its thing than to any of the others (InfoNCE: van den Oord et al., 2018)::

    loss = - log  e^(z z+ / tau) / (e^(z z+ / tau) + sum_j e^(z z_j / tau) + sum_j e^(z z+_j / tau))
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, normalize

from unike.backbones.forward.context import SEEN
from unike.editors.common.covariance import NO_SPREAD
from unike.editors.unike.pictures import Pictures

WIDTH = 256
"""``Q``, directions of the map."""

OF_A_PART, OF_ALL_PARTS = 160, 768
"""Most directions that are kept of what a part shows, and of what all parts show together."""

TOTAL = 0.1
"""Weight of the identity in the covariance of parts."""

BATCH, TAU, DROPPED, RATE, DECAY = 96, 0.08, 0.2, 2e-3, 1e-2
"""Things a batch, temperature, share of inputs dropped, learning rate at its highest, weight decay."""

AMONG = 6 * BATCH
"""The nearest pictures that a batch is taken from: several show one thing."""


def learn_contrast(pictures: Pictures, mean: Tensor, discriminant: Tensor, steps: int) -> Tensor:
    """The map ``[S, WIDTH]``.

    Args:
        pictures: To learn from.
        mean: ``[S]``, of those that are as they are.
        discriminant: ``[2 D, P]``; its directions are read, too.
        steps: Of two batches each, one by a made-up hand and one as pictures are.
    """
    generator = torch.Generator().manual_seed(0)
    centred = pictures.seen - mean
    before = inputs(centred, discriminant)
    read, batches = centred @ before, Batches(pictures, mean, generator)
    weight = nn.Parameter(torch.randn(read.shape[1], WIDTH, generator=generator) / read.shape[1] ** 0.5)
    optimiser = torch.optim.AdamW([weight], lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=max(2, steps))
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(steps):
            found = [batch for batch in (batches.by_a_hand(), batches.as_they_are()) if len(batch) > 1]
            if not found:
                break
            loss = torch.stack([loss_of(read[batch.T], weight) for batch in found]).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return before @ weight.detach()


def loss_of(read: Tensor, weight: Tensor, dropped: float = DROPPED) -> Tensor:
    """InfoNCE of pictures and others of their things, ``read [2, B, K]``, behind ``weight [K, Q]``."""
    one, other = normalize(dropout(read, dropped) @ weight, dim=-1)
    apart = ~torch.eye(len(one), dtype=torch.bool)
    rows = len(one), len(one) - 1
    right = (one * other).sum(dim=1, keepdim=True)
    wrong = [(one @ those.T)[apart].reshape(rows) for those in (one, other)]
    return cross_entropy(torch.cat([right, *wrong], dim=1) / TAU, torch.zeros(len(one), dtype=torch.long))


def inputs(centred: Tensor, discriminant: Tensor) -> Tensor:
    """What the map is learned behind, ``[S, K]``: what the discriminant tells, and all parts, whitened.

    Args:
        centred: What pictures show, ``[n, S]``, about its mean.
        discriminant: ``[2 D, P]``.
    """
    half = len(discriminant)
    told = discriminant / (centred[:, :half] @ discriminant).std().clamp(min=NO_SPREAD)
    parts = centred[:, half:].unflatten(1, (SEEN - 2, half // 2))
    of_a_part = principal(parts.flatten(0, 1), OF_A_PART)[0]
    directions, variance = principal((parts @ of_a_part).flatten(1), OF_ALL_PARTS)
    white = directions * ((1 - TOTAL) * variance + TOTAL * variance.mean()).clamp(min=NO_SPREAD).rsqrt()
    whitened = torch.einsum("dr,prk->pdk", of_a_part, white.unflatten(0, (SEEN - 2, -1))).flatten(0, 1)
    return torch.block_diag(told, whitened)


def principal(states: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The most varied directions of centred ``states [n, D]``, ``[D, width]`` or fewer, and their variance."""
    variance, directions = torch.linalg.eigh((states.T @ states / len(states)).double())
    return directions[:, -width:].float(), variance[-width:].clamp(min=0).float()


class Batches:
    """Pairs of pictures of a thing, ``[B, 2]`` rows, one pair a thing, whose first pictures share a look.

    Args:
        pictures: To choose from.
        mean: ``[S]`` of what they show.
        generator: Of what is drawn.
    """

    def __init__(self, pictures: Pictures, mean: Tensor, generator: torch.Generator) -> None:
        self.thing, self.generator = pictures.thing.tolist(), generator
        self.of_thing: dict[int, list[int]] = {}
        for row, thing in enumerate(self.thing):
            self.of_thing.setdefault(thing, []).append(row)
        paired = torch.tensor([len(self.of_thing[thing]) > 1 for thing in self.thing], dtype=torch.bool)
        self.plain = (pictures.as_they_are & paired).nonzero().flatten()
        told = 2 * len(mean) // SEEN
        self.look = normalize((pictures.seen - mean)[self.plain, :told], dim=1)
        self.plain_of = groups(pictures.kind[self.plain])
        shown = (~pictures.as_they_are & paired).nonzero().flatten()
        labels = torch.stack([pictures.hand, pictures.kind], dim=1)[shown]
        self.shown_of = [shown[rows] for rows in groups(labels)]

    def by_a_hand(self) -> Tensor:
        """Pictures of a kind by one made-up hand."""
        if not self.shown_of:
            return torch.zeros(0, 2, dtype=torch.long)
        rows = self.shown_of[self._any(len(self.shown_of))]
        return self._pairs(rows[torch.randperm(len(rows), generator=self.generator)].tolist())

    def as_they_are(self) -> Tensor:
        """A picture and those that are most like it."""
        if not self.plain_of:
            return torch.zeros(0, 2, dtype=torch.long)
        rows = self.plain_of[self._any(len(self.plain_of))]
        near = (self.look @ self.look[rows[self._any(len(rows))]]).argsort(descending=True, stable=True)[:AMONG]
        return self._pairs(self.plain[near].tolist())

    def _pairs(self, rows: list[int]) -> Tensor:
        return torch.tensor(list(self._one_a_thing(rows)), dtype=torch.long).reshape(-1, 2)

    def _one_a_thing(self, rows: list[int]) -> Iterator[tuple[int, int]]:
        met: set[int] = set()
        for row in rows:
            if self.thing[row] not in met and len(met) < BATCH:
                met.add(self.thing[row])
                others = [other for other in self.of_thing[self.thing[row]] if other != row]
                yield row, others[self._any(len(others))]

    def _any(self, n: int) -> int:
        return int(torch.randint(n, (1,), generator=self.generator))


def groups(labels: Tensor) -> list[Tensor]:
    """Rows that have the same labels ``[n]`` or ``[n, L]``, for each that there are."""
    if not len(labels):
        return []
    which = labels.unique(dim=0, return_inverse=True)[1]
    return [(which == group).nonzero().flatten() for group in range(int(which.max()) + 1)]
