"""What the gate reads on every family: pictures or none, a user's own calls, and what it cannot read."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import ramps
import torch
from tinies import tiny_backbone
from torch import Tensor
from unike_parts import forward, keys_of, read, watched

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Acting, Prefill, attach
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.unike.gate import ASKED, ASKED_OF_NAMED, NAMED, Gate, RisingRamp
from unike.editors.unike.knowledge import Knowledge
from unike.editors.unike.likeness import Reading
from unike.edits.native import in_the_models_own_calls, tokens_behind

pytestmark = pytest.mark.usefixtures("wide_words")

# ---------------------------------------------------------------------- with a picture and without


def shown(gate: Gate, keys: Reading, backbone: Backbone, *asked: Query) -> Tensor:
    """How far each row's own edit is open, with the ramps of words that ship: ``[B]``."""
    acting = watched(gate, keys, backbone)
    with ramps.words(ASKED=ASKED, ASKED_OF_NAMED=ASKED_OF_NAMED, NAMED=NAMED):
        forward(backbone, *asked, acting=acting)
    return acting.seen[0][:, 0]


def test_an_edit_with_a_picture_is_shut_for_an_input_without_one(
    backbone: Backbone, relevance: Gate, keys: Reading, facts: list[Query]
) -> None:
    """In the same words, and with a gate that lets in every picture."""
    blind = [replace(fact, image=None) for fact in facts]
    gate = replace(relevance, about=RisingRamp((-0.99,), (-0.98,)))
    assert not shown(gate, keys, backbone, *blind).any()
    assert (shown(gate, keys, backbone, *facts) == 1).all()


KENYA = Query("What is the capital of Kenya?", target="Nairobi")
SAME, OTHER = "Which city is the capital of Kenya?", "What is the capital of Uganda?"


def test_an_edit_without_a_picture_opens_for_its_rewording_and_not_for_others(
    backbone: Backbone, relevance: Gate, pictures: list[Path]
) -> None:
    """Whether there is a picture or not."""
    key = keys_of(backbone, relevance, [KENYA])
    assert not key.picture.any() and not key.usual.any()
    for image in (None, pictures[0]):
        for prompt, opening in ((KENYA.prompt, 1), (SAME, 1), (OTHER, 0), ("What currency does Kenya use?", 0)):
            found = shown(relevance, key, backbone, Query(prompt, image))
            assert found.tolist() == [opening], (prompt, image)


def test_rows_with_and_without_a_picture_are_read_in_one_pass(
    backbone: Backbone, relevance: Gate, facts: list[Query]
) -> None:
    asked = [facts[0], replace(facts[0], image=None), KENYA]
    try:
        batch = backbone.encode(asked)
    except UnikeError:
        pytest.skip("this family encodes them apart")
    found = relevance.read(backbone, backbone.run_to_split(batch, 0).prefill())
    for row, query in enumerate(asked):
        for one, all_ in zip(read(backbone, relevance, [query]), found, strict=True):
            assert torch.allclose(one[0], all_[row], atol=1e-4)
    assert found.picture.any(dim=1).tolist() == found.usual.any(dim=1).tolist() == [True, False, False]


# ---------------------------------------------------------------------- the model's own calls


def own_calls(backbone: Backbone, acting: Acting, **inputs: Tensor) -> None:
    """What a user does, with something attached."""
    attach(backbone, acting)
    try:
        with in_the_models_own_calls(backbone, lambda: True):
            backbone.model(**inputs)
            beams = {"num_beams": 2, "max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
            backbone.model.generate(**inputs, **beams)
    finally:
        attach(backbone, None)


def test_the_models_own_calls_are_read_as_ours(
    backbone: Backbone, relevance: Gate, keys: Reading, facts: list[Query]
) -> None:
    asked, gate = [facts[1], facts[2], facts[0]], watched(relevance, keys, backbone)
    batch = backbone.encode([replace(query, target=None) for query in asked], padding_side="left")
    own_calls(backbone, gate, **batch.inputs)
    expected = relevance.openings(keys, read(backbone, relevance, asked)).gate
    for gates in gate.seen:
        copies = len(gates) // 3
        assert torch.allclose(gates, expected.repeat_interleave(copies, dim=0), atol=1e-4)
    assert {len(gates) for gates in gate.seen} == {3, 6}


NO_TOKENS = "edits are told apart by the words of a prompt: give input_ids, not inputs_embeds"


def test_embeddings_in_place_of_tokens_are_refused(backbone: Backbone, relevance: Gate) -> None:
    for use in (relevance.read, relevance.keys):
        with pytest.raises(UnikeError) as caught:
            use(backbone, Prefill(torch.tensor([3])))
        assert str(caught.value) == NO_TOKENS


def test_embeddings_in_a_users_own_call_are_refused(make_knowledge: Callable[..., Knowledge]) -> None:
    llava = tiny_backbone("llava")
    gate = make_knowledge(llava).gate
    embedded = llava.model.get_input_embeddings()(llava.encode([KENYA]).inputs["input_ids"])
    with pytest.raises(UnikeError) as caught:
        own_calls(llava, watched(gate, keys_of(llava, gate, [KENYA]), llava), inputs_embeds=embedded)
    assert str(caught.value) == NO_TOKENS
    llava.model(inputs_embeds=embedded)


def test_embeddings_are_known_by_the_tokens_they_are_of(facts: list[Query]) -> None:
    """Pictures stand in their places; another prompt of the same length is not taken for it."""
    blip2 = tiny_backbone("blip2-opt")
    ids = blip2.encode([fact.question for fact in facts[:2]]).inputs["input_ids"]
    vectors = blip2.model.get_input_embeddings()(ids)
    shown = ids == blip2.image_token_id
    handed_on = vectors.clone()
    handed_on[shown] += 1
    twice = handed_on.repeat_interleave(2, dim=0)
    assert torch.equal(tokens_behind(blip2, [(ids, vectors)], handed_on), ids)
    assert torch.equal(tokens_behind(blip2, [(ids, vectors)], twice), ids.repeat_interleave(2, dim=0))
    changed = handed_on.clone()
    changed[0, -1] += 1
    for other in (changed, twice[:3], handed_on[:, 1:]):
        assert tokens_behind(blip2, [(ids, vectors)], other) is None
    assert tokens_behind(blip2, [], handed_on) is None
