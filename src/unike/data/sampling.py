"""Choosing some of many: evenly, in an order that is spread over all from its beginning, or whole groups at random."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from unike.core.errors import UnikeError


def evenly(total: int, count: int | None) -> list[int]:
    """``count`` of the indices below ``total``, evenly spread; all of them if there are no more."""
    return list(range(total)) if count is None or count >= total else [i * total // count for i in range(count)]


def far_apart(count: int) -> list[int]:
    """The numbers below ``count`` in an order whose every beginning is spread over all: steps of the golden ratio."""
    return sorted(range(count), key=lambda i: i * (5**0.5 - 1) / 2 % 1)


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
