"""A user's own loop around ``model.generate``: sampling, streaming from another thread, and several turns.

What an edit that is a change of weights does there is known without hooks: the same loop around a model whose weights
have been changed.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from tinies import tiny_backbone
from torch import Tensor
from transformers import TextIteratorStreamer

from unike.backbones.adapter import Backbone
from unike.core import registry
from unike.data.queries import Query
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel

FAMILIES = ("llava", "qwen3_vl", "blip2-opt")

SETTINGS: dict[str, dict[str, Any]] = {
    "unike": {"layers": (-2, -1), "steps": 10, "lr": 3e-2, "pairs": {"n": 3}, "memory": {"k": 4}},
    "ft": {"steps": 10, "lr": 1e-2},
}

ROOM = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return tiny_backbone(request.param)


@pytest.fixture(scope="module", params=SETTINGS)
def edit(
    request: pytest.FixtureRequest,
    backbone: Backbone,
    facts: list[Query],
    make_knowledge: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Edit:
    settings = dict(SETTINGS[request.param])
    if request.param == "unike":
        folder: Path = tmp_path_factory.mktemp("knowledge") / "known"
        make_knowledge(backbone).save_pretrained(folder)
        settings["knowledge"] = str(folder)
    made: Edit = registry.editors.get(request.param)(**settings).edit(backbone, facts[0])
    return made


def rewritten(backbone: Backbone, edit: Edit) -> Any:
    """A copy of the model that is changed for good, with no hook; of fine-tuning alone."""
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        for name, linear in twin.ffn(-1).matrices.items():
            linear.weight += edit.tensors[name][0]
    return twin.model


def inputs_of(backbone: Backbone, *queries: Query) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = backbone.encode([query.question for query in queries], padding_side="left").inputs
    return inputs


def sampled(generate: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(5)
    return generate(**inputs, do_sample=True, temperature=1.5, **ROOM)


def test_sampling(backbone: Backbone, edit: Edit, facts: list[Query]) -> None:
    inputs, edited = inputs_of(backbone, facts[0]), EditedModel(backbone, [edit])
    plain = sampled(backbone.model.generate, inputs)
    with edited.attached():
        found = sampled(backbone.model.generate, inputs)
    assert torch.equal(sampled(lambda **kwargs: edited.call(backbone.model.generate, **kwargs), inputs), found)
    assert torch.equal(sampled(backbone.model.generate, inputs), plain)
    assert not torch.equal(found, plain)
    if edit.editor == "ft":
        assert torch.equal(sampled(rewritten(backbone, edit).generate, inputs), found)


def streamed(backbone: Backbone, call: Callable[..., Any], inputs: dict[str, Tensor]) -> str:
    """What arrives piece by piece while another thread generates, as transformers' documentation has it."""
    streamer = TextIteratorStreamer(backbone.tokenizer, skip_prompt="input_ids" in inputs, timeout=60)
    options = {**inputs, **ROOM, "do_sample": False, "streamer": streamer}
    thread = Thread(target=call, args=(backbone.model.generate,), kwargs=options)
    thread.start()
    pieces: Iterator[str] = iter(streamer)
    text = "".join(pieces)
    thread.join()
    return text


def test_streaming_from_another_thread(backbone: Backbone, edit: Edit, facts: list[Query]) -> None:
    def bare(generate: Callable[..., Any], **kwargs: Any) -> Any:
        return generate(**kwargs)

    inputs, edited = inputs_of(backbone, facts[0]), EditedModel(backbone, [edit])
    plain = streamed(backbone, bare, inputs)
    found = streamed(backbone, edited.call, inputs)
    assert found != plain
    ids = edited.call(backbone.model.generate, **inputs, **ROOM, do_sample=False)
    assert found.endswith(backbone.tokenizer.decode(ids[0, -ROOM["max_new_tokens"] :]))
    with edited.attached():
        assert streamed(backbone, bare, inputs) == plain, "what is attached is this thread's own"
    assert streamed(backbone, bare, inputs) == plain


def talk(backbone: Backbone, generate: Callable[..., Tensor], facts: list[Query]) -> list[Tensor]:
    """Two turns about a picture: the second reads the first, its answer and a new question, all of it as a prompt."""
    first = backbone.encode([facts[0].question], padding_side="left")
    one = generate(**first.inputs, do_sample=False, **ROOM)[:, -ROOM["max_new_tokens"] :]
    more = backbone.tokenizer(" And who is it?", add_special_tokens=False, return_tensors="pt")["input_ids"]
    second = backbone.extended(first, torch.cat([one, more], dim=1))
    two = generate(**second.inputs, do_sample=False, **ROOM)[:, -ROOM["max_new_tokens"] :]
    return [one, two]


def test_several_turns(backbone: Backbone, edit: Edit, facts: list[Query]) -> None:
    edited = EditedModel(backbone, [edit])
    plain = talk(backbone, backbone.model.generate, facts)
    with edited.attached():
        found = talk(backbone, backbone.model.generate, facts)
    turn_by_turn = talk(backbone, lambda **kwargs: edited.call(backbone.model.generate, **kwargs), facts)
    assert all(torch.equal(a, b) for a, b in zip(found, turn_by_turn, strict=True)), "nothing is left of a turn"
    assert not torch.equal(found[0], plain[0])
    assert all(torch.equal(a, b) for a, b in zip(talk(backbone, backbone.model.generate, facts), plain, strict=True))
    if edit.editor == "ft":
        expected = talk(backbone, rewritten(backbone, edit).generate, facts)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
