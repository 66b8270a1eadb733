"""What tells pictures of one thing from others, learned and drawn from pictures that are not evaluated on.

A picture is what stands in its place in the prompt (`seen_in`). Two pictures of one thing differ by hand, view and
light; pictures of two things differ by more. The metric is the linear discriminant for that: everything is scaled to
unit covariance, then what varies *within* things is scaled down (Fisher, 1936; shrunken as in `covariance`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unike.data.sampling import evenly
from unike.editors.common.covariance import NO_SPREAD, inverse_root, shrunken
from unike.editors.unike.gate import Gate, RisingRamp, usual

WIDTH = 1024
"""Most directions that a metric keeps."""

TOTAL, WITHIN = 0.1, 0.3
"""Weights of the identity in the covariance of all pictures and of those of a thing."""

COHORT = 1000
"""Most pictures that say what is usual."""

FOLDS = 5
"""Ramps are drawn on pictures of things that their metric was not learned from."""

SIZES = 11
"""Of stacks that ramps are drawn for: 1, 2, 4, ... 1024 edits."""

PER_PICTURE = 2
"""So many near things are asked about for each other picture of the thing itself."""

HALF = 0.02
"""Half of what a ramp is wide."""

Pairs = Sequence[tuple[int, int]]
"""Of pictures, by their rows."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures to learn from.

    Args:
        seen: ``[n, 2 D]``, see `seen_in`.
        thing: ``[n]`` long, what each shows.
        same: Pairs of two pictures of a thing: what an edit is to reach.
        near: Pairs of a picture and one of another thing of its kind: what it is not to reach.
        views: ``[m, 2 D]``, some pictures as another hand might show them: they are among what is usual.
        viewed: ``[m]`` long, what each of these shows.
    """

    seen: Tensor
    thing: Tensor
    same: Pairs
    near: Pairs
    views: Tensor
    viewed: Tensor

    def of(self, things: Tensor) -> "Pictures":
        """Those of some things alone, without pairs."""
        rows, views = torch.isin(self.thing, things), torch.isin(self.viewed, things)
        return Pictures(self.seen[rows], self.thing[rows], (), (), self.views[views], self.viewed[views])


def learn_metric(pictures: Pictures, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """The mean ``[2 D]`` of what is seen, and a map ``[2 D, P]`` behind which pictures of one thing lie together."""
    mean = pictures.seen.mean(dim=0)
    centred = pictures.seen - mean
    scale = torch.cat(
        [half.square().mean().sqrt().clamp(min=NO_SPREAD).expand(half.shape[1]) for half in centred.chunk(2, 1)]
    )
    _, singular, directions = torch.linalg.svd((centred / scale).double(), full_matrices=False)
    variance = singular.square() / len(centred)
    kept = (1 - TOTAL) * variance[:width] + TOTAL * variance.mean().clamp(min=NO_SPREAD)
    white = (directions[:width].T * kept.rsqrt()).float() / scale.unsqueeze(1)
    return mean, white @ inverse_root(within(centred @ white, pictures.thing))


def within(states: Tensor, thing: Tensor) -> Tensor:
    """The shrunken covariance of ``states [n, P]`` about the means of their things, each of which weighs the same."""
    count = thing.bincount()
    centres = torch.zeros(len(count), states.shape[1]).index_add_(0, thing, states) / count.unsqueeze(1).clamp(min=1)
    apart = (states - centres[thing]) * (1 / count[thing]).sqrt().unsqueeze(1)
    covariance = apart.T @ apart / max(1, int((count > 1).sum()))
    return shrunken(covariance, WITHIN)


def calibrate(pictures: Pictures, error: float = 0.2) -> tuple[Gate, dict[str, float]]:
    """A gate, and how well it tells pictures of things that it was not learned from.

    For one edit the line is drawn where it is likeliest that another picture of the thing passes and `PER_PICTURE` of
    other things of its kind do not. In a stack of G edits it is no lower than where a share of
    ``error / G`` of pictures of arbitrary other things lies beyond it (Bonferroni's correction).

    Args:
        pictures: To learn from.
        error: The share of arbitrary other pictures that may pass any edit of a stack.
    """
    same, near, others = measured(pictures)
    lines = torch.cat([same, near]).unique()
    reached, let_in = ((found > lines.unsqueeze(1)).float().mean(dim=1) for found in (same, near))
    line = lines[(reached * (1 - let_in) ** PER_PICTURE).argmax()].item()
    chance = others.sort(descending=True).values
    beyond = [chance[round(error / 2**size * (len(chance) - 1))].item() for size in range(SIZES)]
    middles = [max(line, end) for end in beyond]
    about = RisingRamp(tuple(m - HALF for m in middles), tuple(m + HALF for m in middles))
    shares = {
        "same": (same > line).float().mean().item(),
        "near": (near > line).float().mean().item(),
        "other": (others > line).float().mean().item(),
    }
    mean, metric = learn_metric(pictures)
    return Gate(mean, metric, cohort_of(pictures, mean, metric), about), shares


def cohort_of(pictures: Pictures, mean: Tensor, metric: Tensor) -> Tensor:
    """Unit vectors of what is usual, behind a metric: some pictures, evenly spread, and all views."""
    some = pictures.seen[evenly(len(pictures.seen), COHORT)]
    return normalize((torch.cat([some, pictures.views]) - mean) @ metric, dim=1)


def measured(pictures: Pictures) -> tuple[Tensor, Tensor, Tensor]:
    """How alike (`unike.editors.unike.gate.alike`) pairs of one thing, near ones, and arbitrary ones are.

    Of pictures of things that neither the metric nor the cohort was made from.
    """
    names = pictures.thing.unique()
    fold_of = torch.arange(len(names)) % min(FOLDS, len(names))
    found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for fold in fold_of.unique().tolist():
        rest = pictures.of(names[fold_of != fold])
        rest = rest if len(rest.seen) > 1 else pictures
        mean, metric = learn_metric(rest)
        z = normalize((pictures.seen - mean) @ metric, dim=1)
        beyond = usual(z, cohort_of(rest, mean, metric)).squeeze(1)
        here = torch.isin(pictures.thing, names[fold_of == fold])
        for pairs, likenesses in zip((pictures.same, pictures.near), found, strict=False):
            one, other = torch.tensor([p for p in pairs if here[p[0]]], dtype=torch.long).reshape(-1, 2).unbind(1)
            likenesses.append((z[one] * z[other]).sum(dim=1) - (beyond[one] + beyond[other]) / 2)
        arbitrary = z[here] @ z.T - (beyond[here].unsqueeze(1) + beyond) / 2
        found[2].append(arbitrary[pictures.thing[here].unsqueeze(1) != pictures.thing])
    return torch.cat(found[0]), torch.cat(found[1]), torch.cat(found[2])
