"""Anchors: what unrelated questions look like to the feed-forward networks of the unedited model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tinies import tiny_backbone

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import trace
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors, ffn_inputs
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
