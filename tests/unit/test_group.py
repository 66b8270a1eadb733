"""Edits of one config as they act together: their tensors side by side, and what is made of them once."""

from collections.abc import Callable

import pytest
import torch
from tinies import tiny_backbone
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.data.queries import Query
from unike.editors.ft import FTConfig, FTEdit
from unike.edits.group import Group


@pytest.fixture(scope="module")
def llava() -> Backbone:
    return tiny_backbone("llava")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edit_of(llava: Backbone, rows: int, **tensors: Tensor) -> FTEdit:
    facts = [Query("Who?", target="bob")] * rows
    return FTEdit(FTConfig(), tensors, facts, fingerprint=llava.fingerprint(), source=llava.source)


def counted(calls: list[int]) -> Callable[[], int]:
    return lambda: calls.append(1) or len(calls)


def test_what_is_made_once_is_kept_unless_tensors_are_trained(llava: Backbone) -> None:
    still = Group(llava, [edit_of(llava, 1, x=draw(1, 2, 3))])
    trained = Group(llava, [still.edits[0], edit_of(llava, 1, x=draw(1, 2, 3).requires_grad_())])
    assert not still.is_trained and trained.is_trained
    for group, made in ((still, [1, 1, 1]), (trained, [1, 2, 3])):
        calls: list[int] = []
        assert [group.once("key", counted(calls)) for _ in range(3)] == made
        assert len(calls) == made[-1]
        kept: list[int] = []
        assert [group.kept("other key", counted(kept)) for _ in range(3)] == [1, 1, 1], "whatever is trained"


def test_keys_tell_apart_what_is_made(llava: Backbone) -> None:
    group = Group(llava, [edit_of(llava, 1, x=draw(1, 2, 3))])
    assert [group.once(("memory", layer), lambda layer=layer: layer) for layer in (-1, -2, -1)] == [-1, -2, -1]
    assert group.kept(("memory", -1), lambda: "new") == -1, "one store for both"
    assert Group(llava, group.edits).once(("memory", -1), lambda: "of another group") == "of another group"


def test_nothing_that_was_made_may_be_none_or_false_and_made_again(llava: Backbone) -> None:
    group, calls = Group(llava, [edit_of(llava, 1, x=draw(1, 2, 3))]), []
    for _ in range(2):
        assert group.once("nothing", lambda: calls.append(1)) is None
    assert calls == [1]


def test_tensors_stand_side_by_side_and_add_up_row_by_row(llava: Backbone) -> None:
    """An edit of fewer rows serves several in turn; one without a tensor of that name has no part in it."""
    two, six, one = draw(2, 1, 3), draw(6, 2, 3, seed=1), draw(1, 1, 3, seed=2)
    group = Group(llava, [edit_of(llava, 2, x=two), edit_of(llava, 6, x=six), edit_of(llava, 1, y=one)])
    assert (len(group), group.rows) == (3, 6)
    together = group.side_by_side("x")
    assert together.shape == (6, 3, 3)
    for row in range(6):
        assert torch.equal(together[row], torch.cat([two[row // 3], six[row]]))
    assert torch.equal(group.side_by_side("y"), one.expand(6, -1, -1))
    assert group.side_by_side("x") is together, "made once"
    sums = Group(llava, [edit_of(llava, 2, x=two), edit_of(llava, 1, x=one), edit_of(llava, 2, x=two)])
    assert torch.allclose(sums.added_up("x"), 2 * two + one)
    assert torch.equal(two, draw(2, 1, 3)), "nothing is added to the edits' own"


def test_what_is_trained_is_read_anew(llava: Backbone) -> None:
    """And gradients reach it."""
    values = draw(1, 2, 3).requires_grad_()
    group = Group(llava, [edit_of(llava, 1, x=values), edit_of(llava, 1, x=draw(1, 2, 3, seed=1))])
    before = group.side_by_side("x"), group.added_up("x")
    with torch.no_grad():
        values += 1
    after = group.side_by_side("x"), group.added_up("x")
    assert torch.allclose(after[0][:, :2], before[0][:, :2] + 1) and torch.allclose(after[1], before[1] + 1)
    after[0].sum().backward()
    assert values.grad is not None and torch.equal(values.grad, torch.ones(1, 2, 3))
