"""What stands by in a stack, in blocks: the same however the stack came about, and little of it is read anew."""

import gc
import random

import pytest
import torch
from torch import Tensor

from unike.data.queries import Query
from unike.editors.unike.config import UniKEConfig
from unike.editors.unike.editor import UniKEEdit
from unike.edits import standing
from unike.edits.standing import Block, Blocks

NAMES = ("gate.picture", "gate.said", "knowledge")
SIZE = 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "BLOCK", SIZE)


def some_edit(number: int, *, rows: int = 1, halved: bool = True) -> UniKEEdit:
    """Every third says something; what it has does not always fit into half the bytes."""
    generator = torch.Generator().manual_seed(number)
    picture = torch.randn(rows, 1, 5, generator=generator)
    tensors = {"gate.picture": picture.bfloat16().float() if halved else picture}
    tensors["knowledge"] = torch.full((rows, 8), number % 256, dtype=torch.uint8)
    if number % 3 == 0:
        tensors["gate.said"] = torch.ones(rows, 1, 3) * number
    facts = [Query(f"{number}?", target="x")] * rows
    return UniKEEdit(UniKEConfig(), tensors, facts, fingerprint="f", source="s")


def blocks_of(edits: list[UniKEEdit]) -> Blocks:
    return Blocks(tuple(edits), NAMES, torch.device("cpu"))


def whole(blocks: Blocks, name: str, width: int) -> Tensor:
    rows = next(iter(blocks[0].tensors.values())).shape[0]
    return torch.cat([b.tensors.get(name, torch.zeros(rows, len(b), width)).float() for b in blocks], dim=1)


def is_right(blocks: Blocks, edits: list[UniKEEdit]) -> bool:
    assert [len(block) for block in blocks] == [len(edits[at : at + SIZE]) for at in range(0, len(edits), SIZE)]
    nothing = torch.zeros(1, 1, 3)
    expected = {
        "gate.picture": torch.cat([edit.tensors["gate.picture"] for edit in edits], dim=1),
        "gate.said": torch.cat([edit.tensors.get("gate.said", nothing) for edit in edits], dim=1),
        "knowledge": torch.stack([edit.tensors["knowledge"].float() for edit in edits], dim=1),
    }
    return all(torch.equal(whole(blocks, name, each.shape[-1]), each) for name, each in expected.items())


def test_blocks_are_the_edits_side_by_side() -> None:
    edits = [some_edit(number) for number in range(10)]
    blocks = blocks_of(edits)
    assert is_right(blocks, edits)
    assert blocks[0].tensors["gate.picture"].dtype == torch.bfloat16 and blocks[0].tensors["knowledge"].ndim == 3
    fine = [some_edit(number, halved=number != 2) for number in range(3)]
    assert blocks_of(fine)[0].tensors["gate.picture"].dtype == torch.float32, "nothing is lost"
    assert "gate.said" not in blocks_of([some_edit(1), some_edit(2)])[0].tensors


def test_of_several_rows_an_edit_serves_as_many_in_turn() -> None:
    """And a block whose edits are all of one row has one, whatever its neighbours have."""
    two, others = some_edit(1, rows=2), [some_edit(number) for number in range(2, 9)]
    picture = two.tensors["gate.picture"]
    before = blocks_of([two, *others])
    expected = torch.cat([picture, *(edit.tensors["gate.picture"].repeat(2, 1, 1) for edit in others[:3])], dim=1)
    assert torch.equal(before[0].tensors["gate.picture"].float(), expected)
    assert len(before[1].tensors["gate.picture"]) == 1
    assert is_right(blocks_of(others), others)
    assert is_right(blocks_of(others[:2]), others[:2]), "although they stood beside one of two rows"
    later = blocks_of([*others, two])
    assert [len(block.tensors["gate.picture"]) for block in later] == [1, 2]
    expected = torch.cat([*(edit.tensors["gate.picture"].repeat(2, 1, 1) for edit in others[4:]), picture], dim=1)
    assert torch.equal(later[1].tensors["gate.picture"].float(), expected)


def test_it_does_not_matter_how_a_stack_came_about() -> None:
    """Edits come and go anywhere; each stack takes over what it can from those that are alive."""
    chance, edits = random.Random(0), [some_edit(number, halved=number % 7 > 0) for number in range(40)]
    stack, alive = edits[:11], [blocks_of(edits[:11])]
    for _ in range(150):
        stack = list(stack)
        for _ in range(chance.choice([1, 1, 1, 3])):
            there = [edit for edit in edits if edit not in stack]
            if there and (len(stack) < 3 or chance.random() < 0.5):
                stack.insert(chance.choice([0, len(stack), chance.randrange(len(stack) + 1)]), chance.choice(there))
            else:
                stack.pop(chance.randrange(len(stack)))
        if chance.random() < 0.1:
            chance.shuffle(stack)
        alive = [*alive, blocks_of(stack)][-3:]
        assert is_right(alive[-1], stack)


class Unread(dict[str, Tensor]):
    """Tensors that nobody is to ask for."""

    def __getitem__(self, name: str) -> Tensor:
        raise AssertionError(f"{name} is read again")


def test_one_more_or_less_reads_nothing_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    edits, more = [some_edit(number) for number in range(12)], some_edit(99)
    before = blocks_of(edits)
    for edit in edits:
        monkeypatch.setattr(edit, "tensors", Unread(edit.tensors))
    picture, added = whole(before, "gate.picture", 5), blocks_of([*edits, more])
    assert all(one is other for one, other in zip(added, before, strict=False)), "whole blocks are the same"
    assert torch.equal(whole(added, "gate.picture", 5)[:, -1:], more.tensors["gate.picture"])
    for at in (0, 5, 11):
        left = blocks_of([*edits[:at], *edits[at + 1 :]])
        assert torch.equal(whole(left, "gate.picture", 5), torch.cat([picture[:, :at], picture[:, at + 1 :]], dim=1))
        assert all(left[number] is before[number] for number in range(at // SIZE))
        del left  # the next one has more in common with the first


def test_nothing_is_kept_of_stacks_that_nobody_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    edits = [some_edit(number) for number in range(5)]
    blocks_of(edits)
    gc.collect()
    monkeypatch.setattr(edits[0], "tensors", Unread(edits[0].tensors))
    with pytest.raises(AssertionError, match="is read again"):
        blocks_of(edits)


def test_what_is_made_of_a_block_is_made_once() -> None:
    (block,) = blocks_of([some_edit(1), some_edit(2)])
    calls: list[Block] = []
    for _ in range(2):
        assert block.once("key", lambda of: calls.append(of) or len(of)) == 2
    assert calls == [block]
