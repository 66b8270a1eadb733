"""One batch, many users: each row is answered under edits of its own, as if it were asked alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tinies import tiny_backbone
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import target_positions, target_tokens
from unike.core import registry
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.unike.knowledge import Knowledge
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel, RowsEdited
from unike.edits.stack import Stack, attached

FAMILIES = ("llava", "blip2-opt")
"""Gated networks; and networks that flatten rows and positions, and questions without a picture asked apart."""

UNIKE: dict[str, Any] = {
    "layers": (-2, -1),
    "lr": 5e-2,
    "steps": 3,
    "pairs": {"n": 3},
    "memory": {"k": 6},
    "collaboration": {"alpha_offset": 0.2},
    "gate": {"rivalry": 2.0},
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "unike": ("unike", UNIKE),
    "ungated": ("unike", UNIKE | {"gate": {"on": False}}),
    "few": ("unike", UNIKE | {"memory": {"k": 12, "size": 2, "entry": "last"}}),
    "raw": ("unike", UNIKE | {"memory": {"k": 4, "site": "raw"}, "collaboration": {"literal_eq7": True}}),
    "paper": ("unike", {"layers": (-2, -1), "lr": 5e-2, "steps": 3, "paper": True}),
    "pairs": ("unike", UNIKE | {"ablation": "only_intrinsic"}),
    "ft": ("ft", {"lr": 1e-2, "steps": 2}),
    "lower ft": ("ft", {"lr": 1e-2, "steps": 2, "layer": -2}),
    "t_patcher": ("t_patcher", {"lr": 1e-2, "steps": 3, "memory_weight": 0.0}),
}
"""Editors and settings; ``few`` has more to retrieve than there is, for some rows."""

SETS: tuple[tuple[str, ...], ...] = (
    ("unike 0",),
    (),
    ("unike 1", "unike 0", "ft 0"),
    ("unike 2", "unike 0", "unike 3", "t_patcher 0", "ungated 0"),
    (),
    ("ft 1", "ft 0", "t_patcher 1", "unike 1", "lower ft 0"),
    ("pairs 0", "pairs 1", "few 0", "few 1", "few 2"),
    ("ungated 1", "ungated 0", "few 1", "raw 0", "paper 1"),
)
"""Of each row, oldest first: of different sizes and methods, and some edits in several rows."""


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return tiny_backbone(request.param)


@pytest.fixture(scope="module")
def edits(
    backbone: Backbone, make_knowledge: Callable[..., Knowledge], tmp_path_factory: Any, facts: list[Query]
) -> dict[str, Edit]:
    """Four of each method, by name; the gate is half open for most questions."""
    folder = tmp_path_factory.mktemp("knowledge")
    make_knowledge(backbone).save_pretrained(folder)
    known = [*facts, Query("Which is the long river of Peru?", target="yes")]
    made = {}
    for name, (editor, settings) in METHODS.items():
        knowledge = {"knowledge": str(folder)} if editor == "unike" else {}
        for number, fact in enumerate(known):
            made[f"{name} {number}"] = registry.editors.get(editor)(**settings, **knowledge).edit(backbone, fact)
    return made


@pytest.fixture(scope="module")
def sets(edits: dict[str, Edit]) -> list[list[Edit]]:
    return [[edits[name] for name in names] for names in SETS]


@pytest.fixture(scope="module")
def asked(facts: list[Query], pictures: list[Path]) -> list[Query]:
    """Their own questions and others, with targets of different lengths, some without a picture."""
    return [
        facts[0],
        replace(facts[0], target="a very long answer"),
        facts[1],
        replace(facts[2], target="red"),
        Query("Which is the long river of Peru?", target="no"),
        facts[2],
        Query("Who?", target="the baker"),
        Query("What is this thing?", pictures[2], "a cat"),
    ]


def by_row(backbone: Backbone, edits: Sequence[Edit], asked: Sequence[Query]) -> list[Tensor]:
    """Logits of each query's target when all rows see the same edits, in the batches that `RowsEdited` asks in."""
    found: dict[int, Tensor] = {}
    for rows in backbone.groups(asked):
        batch = backbone.encode([asked[row] for row in rows])
        logits = backbone.forward(batch, Stack(backbone, edits))[target_positions(batch.labels)]
        row_of, _ = target_tokens(batch.labels)
        found |= {row: logits[row_of == number] for number, row in enumerate(rows)}
    return [found[row] for row in range(len(asked))]


def found_by_row(model: RowsEdited, asked: Sequence[Query]) -> list[Tensor]:
    """What each row's target got, of the logits of all."""
    sizes = [len(EditedModel(model.backbone).target_logits([query])) for query in asked]
    return list(model.target_logits(asked).split(sizes))


def test_each_row_is_answered_under_its_own_edits(
    backbone: Backbone, sets: list[list[Edit]], asked: list[Query]
) -> None:
    model, plain = RowsEdited(backbone, sets), by_row(backbone, [], asked)
    for row, found in enumerate(found_by_row(model, asked)):
        expected = by_row(backbone, sets[row], asked)[row]
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5), (row, (found - expected).abs().max())
        alone = EditedModel(backbone, sets[row]).target_logits([asked[row]])
        assert torch.allclose(found, alone, atol=1e-4), (row, (found - alone).abs().max())
        if sets[row]:
            assert not torch.allclose(found, plain[row], atol=1e-2), "an edit that does nothing proves nothing"
        else:
            assert torch.equal(found, plain[row]), "not one bit of the others' edits"


def test_rows_may_have_their_methods_in_another_order(
    backbone: Backbone, edits: dict[str, Edit], asked: list[Query]
) -> None:
    """Memories of different settings shift the same attention one after the other, so that their order counts."""
    first, second, third = edits["unike 0"], edits["ungated 0"], edits["raw 0"]
    sets = [[first, second], [second, first], [], [third, second, first], [second, third], [], [first], [third, first]]
    for row, found in enumerate(found_by_row(RowsEdited(backbone, sets), asked)):
        expected = by_row(backbone, sets[row], asked)[row]
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5), (row, (found - expected).abs().max())


@pytest.mark.parametrize("method", METHODS)
def test_each_method_alone(backbone: Backbone, edits: dict[str, Edit], asked: list[Query], method: str) -> None:
    """One, none and three at a time."""
    chosen = [edits[f"{method} {number}"] for number in range(4)]
    sets = [chosen[:1], [], chosen[1:], [], chosen[2:], chosen[::-1], [], chosen[3:]]
    plain = by_row(backbone, [], asked)
    for row, found in enumerate(found_by_row(RowsEdited(backbone, sets), asked)):
        expected = by_row(backbone, sets[row], asked)[row]
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5), (row, (found - expected).abs().max())
        assert sets[row] or torch.equal(found, plain[row])


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("methods", [("unike",), ("ungated",), ("ft", "t_patcher"), tuple(METHODS)], ids=",".join)
def test_each_row_generates_under_its_own_edits(
    backbone: Backbone, sets: list[list[Edit]], asked: list[Query], methods: tuple[str, ...], beams: int
) -> None:
    chosen = [
        [edit for edit, name in zip(own, names, strict=True) if name.rpartition(" ")[0] in methods]
        for own, names in zip(sets, SETS, strict=True)
    ]
    settings = {"max_new_tokens": 4, "num_beams": beams}
    answers = RowsEdited(backbone, chosen).generate(asked, **settings)
    plain = backbone.generate(asked, **settings)
    alone = [
        EditedModel(backbone, own).generate([query], **settings)[0] for own, query in zip(chosen, asked, strict=True)
    ]
    assert answers == alone
    assert [said for said, own in zip(answers, chosen, strict=True) if not own] == [
        said for said, own in zip(plain, chosen, strict=True) if not own
    ]
    assert answers != plain


def test_rows_without_any_edit_are_the_model(backbone: Backbone, edits: dict[str, Edit], asked: list[Query]) -> None:
    """Whatever is attached in the context."""
    model, plain = RowsEdited(backbone, [[]] * len(asked)), by_row(backbone, [], asked)
    answers = backbone.generate(asked, max_new_tokens=3)
    with attached(backbone, [edits["ft 0"]]):
        assert all(torch.equal(a, b) for a, b in zip(found_by_row(model, asked), plain, strict=True))
        assert model.generate(asked, max_new_tokens=3) == answers


def test_what_does_not_fit_is_refused(backbone: Backbone, edits: dict[str, Edit], facts: list[Query]) -> None:
    several = registry.editors.get("ft")(steps=1).edit(backbone, facts)
    with pytest.raises(UnikeError, match=r"is of 3 facts; give each row single edits: edit\[i\]"):
        RowsEdited(backbone, [[several], []])
    model = RowsEdited(backbone, [[several[0]], [several[2]]])
    for ask in (model.target_logits, model.generate):
        with pytest.raises(UnikeError, match="2 rows have edits of their own, and 3 questions are asked"):
            ask(facts)
    stranger = type(several)(several.config, several[0].tensors, several.facts[:1], fingerprint="other", source="other")
    with pytest.raises(UnikeError, match="was made for 'other'"):
        RowsEdited(backbone, [[stranger], []]).target_logits(facts[:2])
