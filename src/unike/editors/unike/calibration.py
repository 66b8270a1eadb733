"""Where the lines are drawn between pictures of one thing and of others, on pictures that are not evaluated on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unike.data.sampling import evenly
from unike.editors.unike.gate import Gate, RisingRamp
from unike.editors.unike.likeness import usual
from unike.editors.unike.metric import Metric, learn_metric
from unike.editors.unike.pictures import Pictures

COHORT, BY_HANDS = 1000, 400
"""Most pictures that say what is usual: as they are, and by made-up hands."""

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


def calibrate(
    pictures: Pictures, same: Pairs, near: Pairs, *, error: float = 0.2, steps: int
) -> tuple[Gate, dict[str, float]]:
    """A gate, and how well it tells pictures of things that it was not learned from.

    For one edit the line is drawn where it is likeliest that another picture of the thing passes and `PER_PICTURE` of
    other things of its kind do not. In a stack of G edits it is no lower than where a share of
    ``error / G`` of pictures of arbitrary other things lies beyond it (Bonferroni's correction).

    Args:
        pictures: To learn from.
        same: Pairs of two pictures of a thing: what an edit is to reach.
        near: Pairs of a picture and one of another thing of its kind: what it is not to reach.
        error: The share of arbitrary other pictures that may pass any edit of a stack.
        steps: Of the contrast, see `learn_metric`.
    """
    reaching, nearby, others = measured(pictures, same, near, steps)
    lines = torch.cat([reaching, nearby]).unique()
    reached, let_in = ((found > lines.unsqueeze(1)).float().mean(dim=1) for found in (reaching, nearby))
    line = lines[(reached * (1 - let_in) ** PER_PICTURE).argmax()].item()
    chance = others.sort(descending=True).values
    beyond = [chance[round(error / 2**size * (len(chance) - 1))].item() for size in range(SIZES)]
    middles = [max(line, end) for end in beyond]
    about = RisingRamp(tuple(m - HALF for m in middles), tuple(m + HALF for m in middles))
    shares = {
        "same": (reaching > line).float().mean().item(),
        "near": (nearby > line).float().mean().item(),
        "other": (others > line).float().mean().item(),
    }
    metric = learn_metric(pictures, steps)
    return Gate(metric, cohort_of(pictures, metric), about), shares


def cohort_of(pictures: Pictures, metric: Metric) -> Tensor:
    """Unit vectors of what is usual, behind a metric: pictures as they are and by made-up hands, evenly spread."""
    parts = ((pictures.as_they_are, COHORT), (~pictures.as_they_are, BY_HANDS))
    rows = [where.nonzero().flatten() for where, _ in parts]
    chosen = [some[evenly(len(some), most)] for some, (_, most) in zip(rows, parts, strict=True)]
    return metric(pictures.seen[torch.cat(chosen)])


def measured(pictures: Pictures, same: Pairs, near: Pairs, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """How alike (`unike.editors.unike.gate.alike`) pairs of one thing, near ones, and arbitrary ones are.

    Of pictures of things that neither the metric nor the cohort was made from: both of a pair, for what is in the
    cohort seems less like others than it is; one of a pair where no fold has two near things, or has one thing alone.
    """
    names, thing = pictures.thing.unique(return_inverse=True)
    fold_of = torch.arange(len(names)) % min(FOLDS, len(names))
    fold_in = fold_of[thing].tolist()
    near = [pair for pair in near if fold_in[pair[0]] == fold_in[pair[1]]] or near
    found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    plain = pictures.as_they_are
    for fold in fold_of.unique().tolist():
        rest = pictures.of(names[fold_of != fold])
        rest = rest if int(rest.as_they_are.sum()) > 1 else pictures
        metric = learn_metric(rest, steps)
        z = metric(pictures.seen)
        beyond = usual(z, cohort_of(rest, metric)).squeeze(1)
        here = torch.isin(pictures.thing, names[fold_of == fold]) & plain
        for pairs, likenesses in zip((same, near), found, strict=False):
            one, other = torch.tensor([p for p in pairs if here[p[0]]], dtype=torch.long).reshape(-1, 2).unbind(1)
            likenesses.append((z[one] * z[other]).sum(dim=1) - (beyond[one] + beyond[other]) / 2)
        against = here if int((fold_of == fold).sum()) > 1 else plain
        arbitrary = z[here] @ z[against].T - (beyond[here].unsqueeze(1) + beyond[against]) / 2
        found[2].append(arbitrary[thing[here].unsqueeze(1) != thing[against]])
    return torch.cat(found[0]), torch.cat(found[1]), torch.cat(found[2])
