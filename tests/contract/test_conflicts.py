"""Edits that contradict each other: the newest wins, whatever made them, and the same fact counts once."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tinies import tiny_backbone

from unike.backbones.adapter import Backbone
from unike.core import registry
from unike.data.queries import Query
from unike.edits.conflicts import in_force, question_of
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel, RowsEdited
from unike.edits.stack import attached

SETTINGS: dict[str, dict[str, Any]] = {
    "unike": {"layers": (-2, -1), "steps": 3, "lr": 3e-2, "pairs": {"n": 3}, "memory": {"k": 4}},
    "ft": {"steps": 3, "lr": 1e-2},
    "t_patcher": {"steps": 3},
    "answer_cache": {},
    "retrieval_prompt": {},
}
"""Methods that hold several edits, with no network to be trained."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone("llava")


@pytest.fixture(scope="module")
def make(
    backbone: Backbone, make_knowledge: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Edit]:
    folder = tmp_path_factory.mktemp("knowledge") / "known"
    make_knowledge(backbone).save_pretrained(folder)

    def made(name: str, fact: Query, on: list[Edit] | None = None) -> Edit:
        more = {"knowledge": str(folder)} if name == "unike" else {}
        edit: Edit = registry.editors.get(name)(**SETTINGS[name], **more).edit(EditedModel(backbone, on or []), fact)
        return edit

    return made


def logits(backbone: Backbone, edits: list[Edit], queries: list[Query]) -> torch.Tensor:
    return EditedModel(backbone, edits).target_logits(queries)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_newest_wins(name: str, backbone: Backbone, facts: list[Query], make: Callable[..., Edit]) -> None:
    older = make(name, facts[0])
    newer = make(name, replace(facts[0], target="a dog"))
    other = make(name, facts[1])
    alone = logits(backbone, [newer, other], facts)
    assert torch.equal(logits(backbone, [older, newer, other], facts), alone)
    assert torch.equal(logits(backbone, [older, other, newer], facts), logits(backbone, [other, newer], facts))
    assert torch.equal(logits(backbone, [newer, older], facts), logits(backbone, [older], facts))
    if name == "answer_cache":
        assert EditedModel(backbone, [older, newer]).generate(facts[:1]) == ["a dog"]
        assert EditedModel(backbone, [newer, older]).generate(facts[:1]) == ["a cat"]


@pytest.mark.parametrize("name", ["unike", "ft"])
def test_one_is_made_as_if_what_it_supersedes_were_not_there(
    name: str, backbone: Backbone, facts: list[Query], make: Callable[..., Edit]
) -> None:
    older, other = make(name, facts[0]), make(name, facts[1])
    fact = replace(facts[0], target="a dog")
    upon = make(name, fact, on=[older, other])
    without = make(name, fact, on=[other])
    assert all(torch.equal(upon.tensors[key], each) for key, each in without.tensors.items())


def test_the_same_fact_counts_once(backbone: Backbone, facts: list[Query], make: Callable[..., Edit]) -> None:
    edit, again = make("ft", facts[0]), make("ft", facts[0])
    once = logits(backbone, [edit], facts)
    assert torch.equal(logits(backbone, [edit, edit], facts), once)
    assert torch.equal(logits(backbone, [edit, again], facts), once)
    with edit.attached(backbone):
        with edit.attached(backbone):
            assert torch.equal(backbone.forward(backbone.encode(facts[:1])), _under(backbone, [edit], facts[:1]))
        assert torch.equal(backbone.forward(backbone.encode(facts[:1])), _under(backbone, [edit], facts[:1]))


def _under(backbone: Backbone, edits: list[Edit], queries: list[Query]) -> torch.Tensor:
    with attached(backbone, edits):
        return backbone.forward(backbone.encode(queries))


def test_methods_supersede_each_other(backbone: Backbone, facts: list[Query], make: Callable[..., Edit]) -> None:
    tuned, cached = make("ft", facts[0]), make("answer_cache", replace(facts[0], target="a dog"))
    assert EditedModel(backbone, [tuned, cached]).edits == (cached,)
    assert EditedModel(backbone, [cached, tuned]).edits == (tuned,)


def test_a_picture_that_is_overwritten_is_another_question(
    backbone: Backbone, facts: list[Query], make: Callable[..., Edit], tmp_path: Path
) -> None:
    frame, made = tmp_path / "frame.png", []
    for fact in facts[:2]:
        assert fact.image is not None
        shutil.copy(fact.image, frame)
        made.append(make("ft", Query("What is this?", frame, fact.target)))
    assert in_force(made) == made
    assert [len(in_force([made[0], edit.to("cpu"), edit[0]])) for edit in made] == [1, 2]


def test_of_rows_each_has_its_newest(backbone: Backbone, facts: list[Query], make: Callable[..., Edit]) -> None:
    older, newer = make("ft", facts[0]), make("ft", replace(facts[0], target="a dog"))
    rows = RowsEdited(backbone, [[older, newer], [newer, older], []])
    expected = RowsEdited(backbone, [[newer], [older], []])
    asked = [facts[0]] * 3
    assert torch.equal(rows.target_logits(asked), expected.target_logits(asked))


def test_what_makes_questions_the_same(facts: list[Query], make: Callable[..., Edit], tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    assert facts[0].image is not None
    shutil.copy(facts[0].image, copy)
    same = [facts[0], replace(facts[0], image=copy, target="x"), replace(facts[0], prompt=" what  IS this? ")]
    assert len({question_of(query) for query in same}) == 1
    others = [facts[1], replace(facts[0], image=None), replace(facts[0], image=Path("gone.png"))]
    assert len({question_of(query) for query in [facts[0], *others]}) == 4
    edit, other = make("ft", facts[0]), make("ft", facts[1])
    assert in_force([edit, other], newer=[facts[0]]) == [other]
    batch = registry.editors.get("ft")(steps=0).edit(tiny_backbone("llava"), facts)
    assert in_force([batch, edit]) == [batch, edit], "of independent rows all are superseded, or none"
    assert in_force([batch, batch]) == [batch]
