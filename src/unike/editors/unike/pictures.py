"""Pictures that the gate is learned from: what they show, and by whose hand."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures to learn from, a row each.

    Args:
        seen: ``[n, S]``, see `seen_in`; S is `SEEN` times the width of visual features.
        thing: ``[n]`` long, what each shows.
        kind: ``[n]`` long, of what kind that is: photograph, drawing, flag; the same for all where nobody knows.
        hand: ``[n]`` long: 0 for a picture as it is, else by which made-up hand it is shown (`prepare.views`).
    """

    seen: Tensor
    thing: Tensor
    kind: Tensor
    hand: Tensor

    def of(self, things: Tensor) -> Self:
        """Those of some things alone."""
        rows = torch.isin(self.thing, things)
        return type(self)(self.seen[rows], self.thing[rows], self.kind[rows], self.hand[rows])

    @property
    def as_they_are(self) -> Tensor:
        """``[n]`` bool."""
        return self.hand == 0
