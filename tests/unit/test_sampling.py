"""Choosing some of many: evenly, in an order spread from its beginning, or whole groups at random."""

from itertools import pairwise

import pytest
import torch

from unike.core.errors import UnikeError
from unike.data.sampling import evenly, far_apart, hold_out


def test_evenly() -> None:
    assert evenly(3, None) == evenly(3, 3) == evenly(3, 9) == [0, 1, 2]
    assert evenly(10, 3) == [0, 3, 6]


def test_beginnings_of_the_order_are_spread() -> None:
    assert sorted(far_apart(50)) == list(range(50))
    for length in (5, 10, 20):
        some = [0, *sorted(far_apart(50)[:length]), 50]
        assert max(b - a for a, b in pairwise(some)) <= 3 * 50 / length


def test_whole_groups_are_held_out() -> None:
    groups = [f"image {i % 50}" for i in range(200)]
    held = hold_out(groups, 0.1)
    assert 20 <= held.sum() < 24
    inside = {group for group, is_held in zip(groups, held.tolist(), strict=True) if is_held}
    outside = {group for group, is_held in zip(groups, held.tolist(), strict=True) if not is_held}
    assert not inside & outside
    assert torch.equal(held, hold_out(groups, 0.1)) and not torch.equal(held, hold_out(groups, 0.1, seed=1))
    with pytest.raises(UnikeError, match="4 of 1 kinds are too few to hold some out"):
        hold_out(["same"] * 4)
