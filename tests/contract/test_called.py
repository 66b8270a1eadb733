"""Only the edits that a row calls upon take part in a pass, and that shows in nothing but the time it takes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ramps
import torch
from people import ASKED, edits_about_people
from tinies import TINIES, tiny_backbone
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.data.queries import Query
from unike.editors.unike.editor import UniKE
from unike.editors.unike.gate import Openings
from unike.editors.unike.knowledge import Knowledge
from unike.editors.unike.likeness import KEPT
from unike.edits import standing
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel, RowsEdited
from unike.edits.stack import attached, joined


@pytest.fixture(autouse=True)
def shipped_ramps() -> Iterator[None]:
    """Names that differ share nothing."""
    with ramps.words():
        yield


@pytest.fixture(scope="module", params=sorted(TINIES))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return tiny_backbone(request.param)


@pytest.fixture(scope="module")
def edits(
    backbone: Backbone, make_knowledge: Callable[..., Knowledge], tmp_path_factory: pytest.TempPathFactory
) -> list[Edit]:
    return edits_about_people(backbone, make_knowledge, tmp_path_factory.mktemp("knowledge"))


class Standby(dict[str, Tensor]):
    """Tensors of an edit that nobody calls upon: the gate's alone may be read."""

    def __getitem__(self, name: str) -> Tensor:
        assert name in KEPT or name == "knowledge", f"{name} was read of an edit that no row calls upon"
        return super().__getitem__(name)


@contextmanager
def standing_by(edits: Sequence[Edit]) -> Iterator[None]:
    """Within the block nothing but the gate is to be read of these edits."""
    with pytest.MonkeyPatch.context() as patch:
        for edit in edits:
            patch.setattr(edit, "tensors", Standby(edit.tensors))
        yield


def test_it_is_bit_for_bit_what_all_of_them_give(
    backbone: Backbone, edits: list[Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = backbone.encode(ASKED)
    with attached(backbone, edits):
        called = backbone.forward(batch)
    with monkeypatch.context() as patch, attached(backbone, edits):
        patch.setattr(Openings, "called", property(lambda self: tuple(range(self.gate.shape[-1]))))
        everything = backbone.forward(batch)
    assert torch.equal(called, everything)
    assert not torch.equal(called, backbone.forward(batch))


def test_of_the_others_nothing_but_the_gate_is_read(backbone: Backbone, edits: list[Edit]) -> None:
    asked, others = ASKED[:1], [*edits[:4], *edits[5:]]
    batch = backbone.encode(asked)
    with attached(backbone, edits):
        expected, answer = backbone.forward(batch), backbone.generate(asked, max_new_tokens=4)
    with attached(backbone, edits), standing_by(others):
        assert torch.equal(backbone.forward(batch), expected)
        assert backbone.generate(asked, max_new_tokens=4) == answer
    model = EditedModel(backbone, edits)
    with standing_by(others):
        assert model.generate(asked, max_new_tokens=4) == answer


def test_it_does_not_matter_how_many_stand_in_a_block(
    backbone: Backbone, edits: list[Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one stack for all rows, of rows that share some edits, and of several edits in one."""
    targets = [Query(query.prompt, target="in a tree") for query in (*ASKED, ASKED[0])]
    shared = [edits, [*edits[:3], edits[4]], edits[1:5]]

    def logits() -> list[Tensor]:
        together = joined(edits[4], [edits[4], edits[1], edits[0]])
        stacks = [EditedModel(backbone, stack) for stack in (edits, [*edits[:2], together, edits[5]])]
        return [model.target_logits(targets) for model in (*stacks, RowsEdited(backbone, shared))]

    expected = logits()
    for size in (1, 2, 4):
        monkeypatch.setattr(standing, "BLOCK", size)
        for found, before in zip(logits(), expected, strict=True):
            assert torch.allclose(found, before, atol=1e-4)
    plain = EditedModel(backbone).target_logits(targets)
    assert not any(torch.allclose(each, plain, atol=1e-4) for each in expected)


def test_where_none_is_called_upon_the_model_is_its_own(backbone: Backbone, edits: list[Edit]) -> None:
    batch = backbone.encode([Query("Is it raining?"), Query("Where does Rosa Parks live?")])
    plain = backbone.forward(batch)
    with attached(backbone, edits), standing_by(edits):
        assert torch.equal(backbone.forward(batch), plain)


def test_without_a_memory_of_triplets_there_may_be_nothing_to_retrieve(
    make_knowledge: Callable[..., Knowledge], tmp_path: Path
) -> None:
    backbone = tiny_backbone("llava")
    make_knowledge(backbone).save_pretrained(tmp_path)
    settings: dict[str, Any] = {"layers": (-1,), "steps": 2, "rounds": 1, "memory": {"size": 0}}
    edit = UniKE(knowledge=str(tmp_path), **settings).edit(backbone, Query(ASKED[0].prompt, target="in a house"))
    batch = backbone.encode(ASKED)
    plain = backbone.forward(batch)
    with edit.attached(backbone):
        found = backbone.forward(batch)
    assert torch.equal(found[1], plain[1]) and not torch.equal(found[0], plain[0]) and not found.isnan().any()
    alone = backbone.encode(ASKED[1:])
    plain = backbone.forward(alone)
    with edit.attached(backbone):
        assert torch.equal(backbone.forward(alone), plain)
