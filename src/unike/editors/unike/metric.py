"""Behind which map pictures of one thing lie together, whoever made them.

Two maps stand side by side, learned from pictures that are not evaluated on, each good at what the other is not:

- The *discriminant* (Fisher, 1936) sees mean and spread of the visual features. Everything is scaled to unit
  covariance, then what varies *within* things is scaled down. It is best for photographs, and for drawings by hands
  like those that it was learned from.
- The *contrast* (`contrast`) sees the parts of a picture, too: where its colours lie, as in flags. It was learned from
  batches by one hand each, so that it tells two things by a hand from one thing by two.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unike.backbones.forward.context import SEEN
from unike.editors.common.covariance import NO_SPREAD, inverse_root, shrunken
from unike.editors.unike.contrast import learn_contrast
from unike.editors.unike.pictures import Pictures

WIDTH = 256
"""Most directions of the discriminant."""

TOTAL, WITHIN = 0.1, 0.3
"""Weights of the identity in the covariance of all pictures and of those of a thing."""

SHARE = 0.8
"""How long the discriminant's unit vector is beside the contrast's."""


@dataclass(frozen=True, eq=False)
class Metric:
    """Both maps.

    Args:
        mean: ``[S]`` of what pictures show.
        discriminant: ``[2 D, P]``, of mean and spread alone.
        contrast: ``[S, Q]``.
    """

    mean: Tensor
    discriminant: Tensor
    contrast: Tensor

    TENSORS: ClassVar[tuple[str, ...]] = ("mean", "discriminant", "contrast")

    @property
    def width(self) -> int:
        """``P + Q``."""
        return self.discriminant.shape[1] + self.contrast.shape[1]

    def __call__(self, seen: Tensor) -> Tensor:
        """Pictures ``[n, S]`` as unit vectors ``[n, P + Q]``."""
        centred = seen - self.mean
        told = SHARE * normalize(centred[:, : len(self.discriminant)] @ self.discriminant, dim=1)
        return normalize(torch.cat([normalize(centred @ self.contrast, dim=1), told], dim=1), dim=1)


def learn_metric(pictures: Pictures, steps: int) -> Metric:
    """Both maps from pictures: the discriminant from those that are as they are.

    Args:
        pictures: To learn from.
        steps: Of the contrast.
    """
    as_they_are = pictures.as_they_are
    mean = pictures.seen[as_they_are].mean(dim=0)
    told = (pictures.seen[as_they_are] - mean)[:, : 2 * len(mean) // SEEN]
    discriminant = learn_discriminant(told, pictures.thing[as_they_are])
    return Metric(mean, discriminant, learn_contrast(pictures, mean, discriminant, steps))


def learn_discriminant(centred: Tensor, thing: Tensor, width: int = WIDTH) -> Tensor:
    """A map ``[2 D, P]`` behind which pictures ``[n, 2 D]``, mean and spread about their mean, differ by thing."""
    halves = centred.chunk(2, dim=1)
    scale = torch.cat([half.square().mean().sqrt().clamp(min=NO_SPREAD).expand(half.shape[1]) for half in halves])
    _, singular, directions = torch.linalg.svd((centred / scale).double(), full_matrices=False)
    variance = singular.square() / len(centred)
    kept = (1 - TOTAL) * variance[:width] + TOTAL * variance.mean().clamp(min=NO_SPREAD)
    white = (directions[:width].T * kept.rsqrt()).float() / scale.unsqueeze(1)
    return white @ inverse_root(within(centred @ white, thing))


def within(states: Tensor, thing: Tensor) -> Tensor:
    """The shrunken covariance of ``states [n, P]`` about the means of their things, each of which weighs the same."""
    _, thing = thing.unique(return_inverse=True)
    count = thing.bincount()
    centres = torch.zeros(len(count), states.shape[1]).index_add_(0, thing, states) / count.unsqueeze(1).clamp(min=1)
    apart = (states - centres[thing]) * (1 / count[thing]).sqrt().unsqueeze(1)
    covariance = apart.T @ apart / max(1, int((count > 1).sum()))
    return shrunken(covariance, WITHIN)
