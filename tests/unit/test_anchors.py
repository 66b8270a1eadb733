"""Anchors: what unrelated questions look like to the feed-forward networks of the unedited model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tinies import tiny_backbone

from unike import api
from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import trace
from unike.cli import _shared
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors, KeptStates, ffn_inputs
from unike.editors.unike.editor import UniKE


@pytest.fixture(scope="module")
def llava() -> Backbone:
    return tiny_backbone("llava")


@pytest.fixture(scope="module")
def facts(pictures: list[Path]) -> list[Query]:
    return [Query("What is this?", pictures[0], "a cat"), Query("Which colour has it?", pictures[1], "bright red")]


@pytest.fixture(scope="module")
def anchors(pictures: list[Path]) -> Anchors:
    return Anchors(
        [Query("Is it near?", pictures[1]), Query("How many are there?", pictures[2]), Query("Who wrote it?")]
    )


def test_anchors_are_every_prompt_position_of_every_query(llava: Backbone, anchors: Anchors) -> None:
    fresh = Anchors([replace(anchors.queries[0], target="yes"), *anchors.queries[1:]])  # answers are left out
    found = fresh.ffn_inputs(llava, (-1, 1))
    for layer in (-1, 1):
        expected = []
        for query in anchors.queries:
            with trace(llava.ffn(layer).inputs) as record:
                llava.forward(llava.encode([query]))
            expected.append(record.input[0])
        assert torch.allclose(found[layer], torch.cat(expected), atol=1e-5)
    again = fresh.ffn_inputs(llava, (-1, 2))
    assert again[-1] is found[-1], "read once"
    assert again[2].shape == found[-1].shape


def test_ffn_inputs_of_a_split_state_are_those_of_the_forward_pass(backbone: Backbone, facts: list[Query]) -> None:
    batch = backbone.encode(facts)
    found = ffn_inputs(backbone, backbone.run_to_split(batch, 1), (-1, 1))
    with trace([backbone.ffn(i).inputs for i in (-1, 1)]) as records:
        backbone.forward(batch)
    for layer, record in zip((-1, 1), records, strict=True):
        assert found[layer].shape == (*batch.labels.shape, backbone.width)
        assert torch.equal(found[layer].flatten(), record.input.flatten())


def test_anchors_are_those_of_the_unedited_model(llava: Backbone, facts: list[Query], anchors: Anchors) -> None:
    editor = UniKE(ablation="only_intrinsic", steps=3, lr=0.1, layers=(-2, -1), anchors=Anchors(anchors.queries))
    edit = editor.edit(llava, facts[0])
    asked = llava.encode([facts[0]])
    plain = ffn_inputs(llava, llava.run_to_split(asked, -2), (-1,))[-1]
    expected = Anchors(anchors.queries).ffn_inputs(llava, (-1,))[-1]
    late = UniKE(ablation="only_intrinsic", anchors=Anchors(anchors.queries))
    with edit.attached(llava):
        assert torch.equal(Anchors(anchors.queries).ffn_inputs(llava, (-1,))[-1], expected)
        assert not torch.equal(ffn_inputs(llava, llava.run_to_split(asked, -2), (-1,))[-1], plain)
        under = llava.forward(asked)
        assert torch.equal(late.anchor_inputs(llava, (-1,))[-1], expected)
        assert torch.equal(llava.forward(asked), under), "the edit acts again"
    assert not torch.equal(llava.forward(asked), under)


# ---------------------------------------------------------------------- kept for the next process


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where things are kept."""
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions each pass over anchors has read."""
    read: list[int] = []
    encode = Backbone.encode

    def counting(self: Backbone, queries: list[Query], **kwargs: Any) -> Any:
        read.append(len(queries))
        return encode(self, queries, **kwargs)

    monkeypatch.setattr(Backbone, "encode", counting)
    return read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_read_is_kept_bit_for_bit(place: Path, anchors: Anchors, counted: list[int], dtype: Any) -> None:
    model = tiny_backbone("llava")
    model.model.to(dtype)
    first = Anchors(anchors.queries, kept=True).ffn_inputs(model, (-1, 1))
    assert counted == [2, 1]
    told: list[tuple[str, int, int]] = []
    next_one = Anchors(anchors.queries, kept=True).ffn_inputs(model, (1, -1), lambda *news: told.append(news))
    assert counted == [2, 1] and not told
    for layer, states in first.items():
        assert torch.equal(next_one[layer], states) and next_one[layer].dtype == torch.float32


def test_another_model_question_picture_or_layer_is_read_anew(
    place: Path, anchors: Anchors, counted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = tmp_path / "picture.png"
    picture = anchors.queries[0].image
    assert picture is not None
    moving.write_bytes(picture.read_bytes())
    queries = [Query("Is it near?", moving), Query("Who wrote it?")]
    model = tiny_backbone("llava")

    def passes(model: Backbone = model, queries: list[Query] = queries, layers: tuple[int, ...] = (-1,)) -> int:
        counted.clear()
        Anchors(queries, kept=True).ffn_inputs(model, layers)
        return len(counted)

    assert (passes(), passes()) == (2, 0)
    assert passes(tiny_backbone("llava", seed=1)) == 2
    assert passes(queries=[*queries, Query("And when?")]) == 2
    assert passes(layers=(-2,)) == 2
    picture = anchors.queries[1].image
    assert picture is not None
    moving.write_bytes(picture.read_bytes())
    assert passes() == 2
    through = type(model)(model.model, **model.processors, source=model.source, template="{image}{prompt}")
    assert passes(through) == 2
    monkeypatch.setattr("unike.editors.common.anchors.__version__", "another")
    assert (passes(), passes()) == (2, 0)
    weight = next(model.model.parameters())
    with torch.no_grad():
        weight.add_(1)
    assert passes() == 2, "a weight was changed in place"


@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_what_is_damaged_is_read_anew(place: Path, anchors: Anchors, counted: list[int], harm: str) -> None:
    model = tiny_backbone("llava")
    expected = Anchors(anchors.queries, kept=True).ffn_inputs(model, (-1,))
    (file,) = place.glob("anchors/*/anchors.safetensors")
    content = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-4] + (b"" if harm == "cut" else b"abcd"))
    counted.clear()
    found = Anchors(anchors.queries, kept=True).ffn_inputs(model, (-1,))
    assert counted == [2, 1] and torch.equal(found[-1], expected[-1])
    assert file.read_bytes() == content, "it is kept again"


def test_a_disk_that_takes_nothing_costs_time_alone(
    place: Path, anchors: Anchors, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "anchors").write_text("no folder")
    assert Anchors(anchors.queries, kept=True).ffn_inputs(tiny_backbone("llava"), (-1,))
    (place / "anchors").unlink()
    monkeypatch.setattr(KeptStates, "LARGEST", 100)
    assert Anchors(anchors.queries, kept=True).ffn_inputs(tiny_backbone("llava"), (-1,))
    assert not (place / "anchors").exists()


def test_what_is_read_is_told(anchors: Anchors) -> None:
    told: list[tuple[str, int, int]] = []
    editor = UniKE(ablation="only_intrinsic", layers=(-2, -1), anchors=Anchors(anchors.queries))
    editor.progress = lambda *news: told.append(news)
    editor.prepare(tiny_backbone("llava"))
    assert told == [("reading unrelated questions", done, 3) for done in (0, 2, 3)]


def test_the_command_line_shows_it(llava: Backbone, anchors: Anchors, facts: list[Query]) -> None:
    told: list[str] = []
    editor = UniKE(ablation="only_intrinsic", steps=1, layers=(-2, -1), anchors=Anchors(anchors.queries))
    _shared.edited(llava, editor, facts[0], told.append)
    assert told[0] == "reading what the method needs of the model" and told[-1] == "editing"
    assert "reading unrelated questions, to leave them alone: 2 of 3" in told


def test_the_default_anchors_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.pocket, "unrelated", lambda: [Query("Why?")])
    assert api.default_anchors.__wrapped__().kept and not Anchors([Query("Why?")]).kept
