"""The split forward: run to a layer and resumed it is the whole pass, bit for bit, on a tiny model of every family."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from patches import Patch
from processor import needs_bfloat16
from torch import Tensor, nn

from unike.backbones import load_backbone
from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import SEEN, running
from unike.backbones.forward.functional import target_positions, token_nll
from unike.backbones.forward.hooks import Args, Hooks, Kwargs, trace
from unike.backbones.forward.split import SplitState
from unike.data.queries import Query
from unike.editors import checks as laws
from unike.editors.checks import Law


@pytest.mark.usefixtures("attention_kernel")
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.name)
def test_laws_that_also_unlisted_models_are_checked_for(backbone: Backbone, queries: list[Query], law: Law) -> None:
    assert law.measure(backbone, queries) <= (1e-5 if law.allowed is None else law.allowed)


def test_a_split_state_knows_its_layer_and_serves_some_positions(backbone: Backbone, queries: list[Query]) -> None:
    batch = backbone.encode(queries)
    state = backbone.run_to_split(batch, -1)
    assert state.layer == backbone.n_layers - 1
    positions = target_positions(batch.labels)
    some = backbone.run_from_split(state, positions=positions)
    assert torch.allclose(some, backbone.forward(batch)[positions], atol=1e-5)


def test_split_of_text_alone(backbone: Backbone) -> None:
    batch = backbone.encode([Query("Who wrote it?", target="a poet"), Query("And when was that?", target="1805")])
    state = backbone.run_to_split(batch, 2)
    assert torch.equal(backbone.run_from_split(state), backbone.forward(batch))


def test_split_runs_nothing_twice(backbone: Backbone, queries: list[Query]) -> None:
    batch = backbone.encode(queries)
    with trace(list(backbone.layers)) as records:
        state = backbone.run_to_split(batch, 2)
        assert [record.count for record in records] == [1, 1, *[0] * (backbone.n_layers - 2)]
        backbone.run_from_split(state)
        assert [record.count for record in records] == [1] * backbone.n_layers


def test_rows_of_a_state_can_be_repeated(backbone: Backbone, queries: list[Query]) -> None:
    state = backbone.run_to_split(backbone.encode(queries), 1)
    rows = [2, 0, 0, 1, 2]
    expanded = state.expand(rows)
    assert len(expanded) == 5
    assert torch.equal(expanded.labels, state.labels[rows])
    assert torch.allclose(backbone.run_from_split(expanded), backbone.run_from_split(state)[rows], atol=1e-5)
    single = backbone.run_to_split(backbone.encode(queries[:1]), 1)
    repeated = backbone.run_from_split(single.expand([0, 0]))
    assert torch.allclose(repeated, backbone.run_from_split(single)[[0, 0]], atol=1e-5)


def test_gradients_through_the_split_equal_those_of_the_full_forward(backbone: Backbone, queries: list[Query]) -> None:
    batch = backbone.encode(queries)
    patch = Patch(backbone, (-2, -1))
    parameters = [p.requires_grad_() for weights in patch.weights.values() for p in weights]
    state = backbone.run_to_split(batch, -2)
    with Hooks() as hooks:
        patch.on(hooks)
        full = torch.autograd.grad(token_nll(backbone.forward(batch), batch.labels).sum(), parameters)
        logits = backbone.run_from_split(state, positions=target_positions(state.labels))
        split = torch.autograd.grad(token_nll(logits, state.labels).sum(), parameters)
    for a, b in zip(full, split, strict=True):
        assert a.abs().max() > 0
        assert torch.allclose(a, b, atol=1e-5)
    assert not state.hidden.requires_grad


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.usefixtures("attention_kernel")
def test_a_shortened_state_is_a_state(backbone: Backbone, queries: list[Query], padding_side: str) -> None:
    """It can be advanced, and its rows picked; that it ends as the whole one is a law."""
    batch = backbone.encode(queries, padding_side=padding_side)
    state = backbone.run_to_split(batch, 1)
    short = backbone.shorten(state)
    if backbone.reads_prompts_both_ways:
        assert short is state, "nothing of a prompt is settled before its end"
        return
    assert short.start == int(batch.prompt_last.min()) > 0
    assert backbone.shorten(short) is short
    assert torch.equal(short.labels, batch.labels[:, short.start :])
    real = batch.inputs["attention_mask"].bool()[:, short.start :]
    whole = backbone.run_from_split(short)
    assert torch.allclose(backbone.run_from_split(backbone.advance(short, -1))[real], whole[real], atol=1e-5)
    for read in (short, short.expand([0, 1, 2]), backbone.advance(short, -1)):
        assert torch.equal(read.pictures, state.pictures) and read.tokens == batch.tokens
    rows = [2, 0, 0]
    picked = backbone.run_from_split(short.expand(rows))
    assert torch.allclose(picked[real[rows]], whole[rows][real[rows]], atol=1e-5)


def test_a_state_brings_along_what_its_prompts_say_and_show(backbone: Backbone, queries: list[Query]) -> None:
    """And not what they are answered; wherever it was cut, and for whichever rows."""
    batch = backbone.encode(queries)
    state = backbone.run_to_split(batch, 0)
    seen = state.pictures
    assert seen is not None and seen.shape == (3, SEEN * backbone.width)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3), "each shows its own"
    assert [backbone.asked(tokens) for tokens in state.tokens] == [query.prompt for query in queries]
    without = backbone.encode([replace(query, target=None) for query in queries])
    assert without.tokens == batch.tokens
    assert torch.allclose(backbone.run_to_split(without, 2).pictures, seen, atol=1e-5)
    picked = state.expand([2, 0, 0])
    assert torch.equal(picked.pictures, seen[[2, 0, 0]]) and picked.tokens == tuple(batch.tokens[i] for i in (2, 0, 0))
    assert picked.prefill().pictures is picked.pictures and picked.prefill().tokens == picked.tokens
    assert backbone.run_to_split(backbone.encode([Query("Who?")]), 1).pictures is None


def test_a_shortened_pass_reads_only_what_is_left(backbone: Backbone, queries: list[Query]) -> None:
    short = backbone.shorten(backbone.run_to_split(backbone.encode(queries), 1))
    with trace(backbone.layers[-1]) as record:
        backbone.run_from_split(short)
    assert record.input.shape[:2] == short.labels.shape


def test_gradients_through_a_shortened_state_are_those_of_the_whole(backbone: Backbone, queries: list[Query]) -> None:
    """Of whatever acts from the prompts' ends on: here, of a change of each layer's output there."""
    state = backbone.run_to_split(backbone.encode(queries), -2)
    shift = torch.zeros(2, backbone.width, requires_grad=True)

    def gradient(state: SplitState) -> Tensor:
        def push(number: int, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
            prefill = running()
            assert prefill is not None
            hidden = output[0] if isinstance(output, tuple) else output
            moved = hidden + prefill.from_prompt_last(hidden) * shift[number]
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        with Hooks() as hooks:
            for number in (0, 1):
                hooks.add(backbone.layers[number - 2], partial(push, number))
            logits = backbone.run_from_split(state, target_positions(state.labels))
            return torch.autograd.grad(token_nll(logits, state.labels).sum(), shift)[0]

    whole, short = gradient(state), gradient(backbone.shorten(state))
    assert whole.abs().amax(dim=1).min() > 0
    assert torch.allclose(whole, short, atol=1e-5)


@needs_bfloat16
def test_half_precision(backbone: Backbone, queries: list[Query], tmp_path: Path) -> None:
    """Of every family; `unit/test_laws.py` measures every law on one, whatever the processor."""
    backbone.save_pretrained(tmp_path)
    half = load_backbone(tmp_path, device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.fingerprint() == backbone.fingerprint()
    batch = half.encode(queries)
    assert torch.equal(half.run_from_split(half.run_to_split(batch, 2)), half.forward(batch))
