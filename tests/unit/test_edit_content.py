"""The bytes of an edit's tensors: rows that are copies are kept once, and nothing changes by it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from unike.edits.content import COPIES, MOST, from_bytes, to_bytes
from unike.edits.tensors import unpacked


def whole(content: bytes) -> dict[str, Tensor]:
    return {name: unpacked(tensor) for name, tensor in from_bytes(content).items()}


@given(kinds=st.lists(st.integers(0, 3), min_size=1, max_size=12), edits=st.integers(1, 3))
def test_what_is_kept_comes_back_to_the_bit(kinds: list[int], edits: int) -> None:
    drawn = torch.randn(edits, 4, 5, generator=torch.Generator().manual_seed(0))
    tensors = {"-1.values": drawn[:, kinds], "-1.bias": drawn[:, kinds, 0], "knowledge": torch.arange(8).byte()[None]}
    found = whole(to_bytes(tensors))
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


def test_copies_are_kept_once() -> None:
    rows = torch.randn(1, 2, 500, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    once, copied = (len(to_bytes({"values": each})) for each in (rows, rows[:, [0, 1] * 5]))
    assert copied < once + 200 < 5 * once
    kept = load(to_bytes({"values": rows[:, [1, 0, 1]]}))
    assert kept["values"].shape == (1, 2, 500) and kept["values" + COPIES].tolist() == [0, 1, 0]


def test_rows_that_only_some_edits_repeat_are_all_kept() -> None:
    """Edits of a batch are numbered together."""
    rows = torch.stack([torch.eye(3)[[0, 0, 1]], torch.eye(3)[[0, 1, 2]]])
    assert torch.equal(whole(to_bytes({"values": rows}))["values"], rows)


def test_many_rows_are_kept_as_they_are() -> None:
    assert load(to_bytes({"values": torch.zeros(1, MOST + 1, 1)})).keys() == {"values"}


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (torch.tensor([0, 2], dtype=torch.int16), "numbers rows that there are not"),
        (torch.tensor([-1], dtype=torch.int16), "numbers rows that there are not"),
        (torch.zeros(MOST + 1, dtype=torch.int16), "does not number up to"),
        (torch.zeros(1, 2, dtype=torch.int16), "does not number up to"),
        (torch.tensor([0.0]), "does not number up to"),
    ],
)
def test_forged_copies_are_refused(kinds: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_bytes(save({"values": torch.zeros(1, 2, 3), "values" + COPIES: kinds}))


@pytest.mark.parametrize("tensors", [{}, {"values": torch.zeros(3)}])
def test_copies_of_nothing_are_refused(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="numbers rows that there are not"):
        from_bytes(save({**tensors, "values" + COPIES: torch.zeros(1, dtype=torch.int16)}))
