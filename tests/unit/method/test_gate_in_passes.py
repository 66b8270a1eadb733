"""The gate on every family: only the prompt opens and closes it, in whatever pass."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import ramps
import torch
from torch import Tensor
from unike_parts import (
    CLOSED,
    LAYERS,
    OPEN,
    Together,
    Watched,
    draw,
    forward,
    group_of,
    keys_of,
    read,
    rows_of,
    watched,
)

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Prefill
from unike.backbones.forward.hooks import Hooks
from unike.data.queries import Query
from unike.editors.common.pairs import FFNPatch, PairGate, install_patch
from unike.editors.unike.collaboration import FixedAlpha
from unike.editors.unike.gate import ASKED, Gate, Openings, Ramp, RisingRamp, compete, install_gate
from unike.editors.unike.injection import LatentInjection
from unike.editors.unike.likeness import Reading, alike
from unike.editors.unike.memory import LatentMemory
from unike.editors.unike.words import read_words

pytestmark = pytest.mark.usefixtures("wide_words")


class Gated:
    """Pairs beside the last two networks, and a memory of the last layer, gated by relevance (or not, for None)."""

    rows = 1

    def __init__(self, backbone: Backbone, relevance: Gate | None, keys: Reading) -> None:
        width = backbone.width
        self.relevance, self.group = relevance, group_of(backbone, keys)
        self.patch = FFNPatch(draw(1, 5, width, seed=5) / width**0.5, draw(1, 5, seed=6), draw(1, 5, width, seed=7))
        memory = LatentMemory(draw(12, width, seed=1), 2 * draw(12, width, seed=2))
        self.injection = LatentInjection(memory, k=4, alpha=FixedAlpha(0.5))

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        of_pairs = of_memory = None
        if self.relevance is not None:
            openings = install_gate(self.relevance, self.group, prefill)
            of_pairs, of_memory = partial(every_pair, openings), partial(only_edit, openings)
        for layer in LAYERS:
            install_patch(self.patch, backbone.ffn(layer), hooks, of_pairs)
        self.injection.install(backbone, -1, hooks, prefill, of_memory)


def every_pair(openings: Callable[[], Openings]) -> PairGate:
    """The gate of one edit's five pairs."""
    return PairGate(openings().gate.expand(-1, 5), torch.zeros(1))


def only_edit(openings: Callable[[], Openings]) -> Tensor:
    return openings().gate[:, 0]


# ---------------------------------------------------------------------- what is read


def test_what_is_read_is_the_same_in_any_pass(
    backbone: Backbone, relevance: Gate, keys: Reading, facts: list[Query]
) -> None:
    """Whole, cut anywhere, shortened, advanced, padded on either side, alone, generated, with beams or without."""
    asked = [facts[1], facts[2], facts[0]]
    gate, batch = watched(relevance, keys, backbone), backbone.encode(asked)
    expected = relevance.openings(keys, read(backbone, relevance, asked)).gate
    assert ((expected > 0) & (expected < 0.9999)).all() and len(set(expected[:, 0].tolist())) == 3
    backbone.forward(batch, gate)
    for padding_side in ("left", "right"):
        for layer in (0, 2):
            state = backbone.run_to_split(backbone.encode(asked, padding_side=padding_side), layer)
            for each in (state, backbone.shorten(state), backbone.advance(state, 3), state.expand([0, 1, 2])):
                backbone.run_from_split(each, acting=gate)
    backbone.generate(asked, max_new_tokens=2, acting=gate)
    assert len(gate.seen) > 1 + 16
    for factors in gate.seen:
        assert torch.allclose(factors, expected, atol=1e-4)
    alone = watched(relevance, rows_of(keys, 1), backbone)
    forward(backbone, asked[1], acting=alone)
    assert torch.allclose(alone.seen[0], expected[1:2], atol=1e-4)
    own = watched(relevance, keys, backbone)
    forward(backbone, *facts, acting=own)
    assert torch.allclose(own.seen[0], torch.ones(3, 1)), "each row is asked about its own fact"


def test_what_a_prompt_says_is_the_question_without_its_template(
    backbone: Backbone, relevance: Gate, facts: list[Query]
) -> None:
    prompts = [fact.prompt for fact in facts]
    found, words = read(backbone, relevance, facts), read_words(prompts)
    assert torch.allclose(found.asked, words.asked, atol=1e-5)
    assert torch.equal(found.said, words.said) and torch.equal(found.rare, words.names)
    assert torch.allclose(keys_of(backbone, relevance, facts).rare[:, 0], words.rare, atol=1e-6)


def test_a_prefill_is_read_once(backbone: Backbone, keys: Reading, relevance: Gate, facts: list[Query]) -> None:
    """However many layers ask, and tokens follow."""
    count = []

    class Counted(Gate):
        def read(self, backbone: Backbone, prefill: Prefill) -> Reading:
            count.append(1)
            return super().read(backbone, prefill)

    gate = Counted.of(relevance.settings(), relevance.tensors())
    acting = Gated(backbone, gate, keys)
    forward(backbone, *facts, acting=acting)
    assert len(count) == 1
    backbone.generate(facts, max_new_tokens=4, acting=acting)
    assert len(count) == 2


def test_each_row_is_compared_with_every_edit_of_its_own(
    backbone: Backbone, relevance: Gate, keys: Reading, facts: list[Query]
) -> None:
    """``[B, G, n]`` keys: two batches of edits, two rows each."""
    several = Reading(*(torch.stack([part[[0, 1], 0], part[[2, 0], 0]]) for part in keys))
    asked = [facts[0], facts[1], facts[2], facts[1]]
    gate = watched(relevance, several, backbone)
    forward(backbone, *asked, acting=gate)
    (factors,) = gate.seen
    assert factors.shape == (4, 2)
    given = read(backbone, relevance, asked)
    for row in range(4):
        for edit in range(2):
            key = Reading(*(part[row // 2, edit : edit + 1] for part in several))
            expected = relevance.openings(key, Reading(*(part[row] for part in given))).gate
            assert factors[row, edit].item() == pytest.approx(expected.item(), abs=1e-5)
    assert factors[0, 0] == pytest.approx(1, abs=1e-4) and factors[2, 0] == pytest.approx(1, abs=1e-4)
    assert 0 < factors[3].min() < factors[3].max() < 0.9999


def test_answer_tokens_have_no_say(backbone: Backbone, relevance: Gate, keys: Reading, facts: list[Query]) -> None:
    """Neither teacher-forced ones nor generated ones, in a batch, with beams, or alone."""
    asked, gate = [facts[1], facts[2], facts[0]], watched(relevance, keys, backbone)
    for targets in [("a cat", "red", "bob"), ("xq!", "a very long answer that is quite another", "5")]:
        forward(backbone, *(replace(query, target=t) for query, t in zip(asked, targets, strict=True)), acting=gate)
    forward(backbone, *(replace(query, target=None) for query in asked), acting=gate)
    greedy = len(gate.seen)
    backbone.generate(asked, max_new_tokens=4, acting=gate)
    beams = len(gate.seen)
    backbone.generate(asked, max_new_tokens=3, num_beams=2, acting=gate)
    first = gate.seen[0]
    assert (first < 0.9999).all() and len(set(first[:, 0].tolist())) == 3
    for factors in gate.seen[:beams]:
        assert torch.allclose(factors, first, atol=1e-4)
    for factors in gate.seen[beams:]:
        assert torch.allclose(factors, first.repeat_interleave(2, dim=0), atol=1e-4)
    assert len(gate.seen) - beams > 1
    assert all(torch.equal(factors, gate.seen[greedy]) for factors in gate.seen[greedy:beams])
    for row, query in enumerate(asked):
        alone = watched(relevance, rows_of(keys, row), backbone)
        forward(backbone, query, acting=alone)
        assert torch.allclose(alone.seen[0], first[row : row + 1], atol=1e-4)


# ---------------------------------------------------------------------- what it does


def test_a_closed_gate_is_no_edit_bit_for_bit(
    backbone: Backbone, relevance: Gate, keys: Reading, facts: list[Query]
) -> None:
    plain, answers = forward(backbone, *facts), backbone.generate(facts, max_new_tokens=3)
    beams = backbone.generate(facts, max_new_tokens=2, num_beams=2)
    assert not torch.allclose(forward(backbone, *facts, acting=Gated(backbone, None, keys)), plain, atol=1e-1)
    for about, words in ((CLOSED, {}), (OPEN, {"ASKED": Ramp(8.0, 9.0)})):
        acting = Gated(backbone, replace(relevance, about=about), keys)
        with ramps.words(**words):
            assert torch.equal(forward(backbone, *facts, acting=acting), plain)
            assert backbone.generate(facts, max_new_tokens=3, acting=acting) == answers
            assert backbone.generate(facts, max_new_tokens=2, num_beams=2, acting=acting) == beams
    assert torch.equal(forward(backbone, *facts), plain)


def test_an_open_gate_is_no_gate(backbone: Backbone, relevance: Gate, keys: Reading, facts: list[Query]) -> None:
    found = []
    for gate in (None, replace(relevance, about=OPEN)):
        acting = Gated(backbone, gate, keys)
        with ramps.words(ASKED=Ramp(-9.0, -8.0)):
            answers = backbone.generate(facts, max_new_tokens=3, acting=acting)
            beams = backbone.generate(facts, max_new_tokens=3, num_beams=2, acting=acting)
            found.append((forward(backbone, *facts, acting=acting), answers, beams))
    (ungated, *answers), (logits, *same) = found
    assert torch.equal(logits, ungated)
    assert same == answers


def test_the_gate_opens_for_each_row_by_its_own_prompt(
    backbone: Backbone, relevance: Gate, keys: Reading, facts: list[Query]
) -> None:
    """Row 1 is asked what it was edited with, row 0 something else, row 2 of another picture; wherever it is cut."""
    asked = [replace(facts[0], prompt="Who wrote the long book?"), facts[1], replace(facts[2], image=facts[0].image)]
    batch = backbone.encode(asked)
    plain = backbone.forward(batch)
    near = alike(keys, read(backbone, relevance, asked))[:, 0]
    assert near[1] > near[2] + 0.05
    narrow = replace(relevance, about=RisingRamp((near[2].item(),), (near[1].item(),)))
    with ramps.words(ASKED=ASKED):
        acting, closed = Gated(backbone, narrow, keys), Gated(backbone, replace(relevance, about=CLOSED), keys)
        ungated, logits = backbone.forward(batch, Gated(backbone, None, keys)), backbone.forward(batch, acting)
        for split in (0, 1, 2):
            state = backbone.run_to_split(batch, split)
            assert torch.equal(backbone.run_from_split(state, acting=acting), logits)
        advanced = backbone.advance(backbone.run_to_split(batch, 0), -2)
        assert torch.equal(backbone.run_from_split(advanced, acting=acting), logits)
        both = Together(acting, closed)
        assert torch.equal(backbone.forward(batch, both), logits), "gates stack, and a closed one changes nothing"
    assert torch.equal(logits[[0, 2]], plain[[0, 2]])
    assert torch.equal(logits[1], ungated[1])
    assert not torch.allclose(logits[1], plain[1], atol=1e-2)


def test_edits_of_a_stack_compete_by_what_is_asked_and_shown(
    backbone: Backbone, relevance: Gate, facts: list[Query]
) -> None:
    """In one pass, split, shortened, and with beams."""
    stack = Reading(*(part.transpose(0, 1) for part in keys_of(backbone, relevance, facts)))  # [1, 3, n]
    asked = [facts[2], facts[0], replace(facts[1], prompt="Which size has the thing in the middle of it?")]
    batch, given = backbone.encode(asked), read(backbone, relevance, asked)
    of_rows = Reading(*(part.expand(3, -1, -1) for part in stack))
    near = (of_rows.asked @ given.asked.unsqueeze(-1)).squeeze(-1) + alike(of_rows, given)
    expected = compete(near, 3.0)
    assert expected.argmax(dim=1).tolist() == [2, 0, 1] and ((expected > 0) & (expected < 1)).any()
    gate = Watched(replace(relevance, about=OPEN), group_of(backbone, stack, rivalry=3.0))
    with ramps.words(ASKED=Ramp(-9.0, -8.0)):
        backbone.forward(batch, gate)
        backbone.run_from_split(backbone.shorten(backbone.run_to_split(batch, 1)), acting=gate)
        backbone.run_from_split(backbone.advance(backbone.run_to_split(batch, 1), 2), acting=gate)
        backbone.generate(asked, max_new_tokens=2, acting=gate)
        greedy = len(gate.seen)
        backbone.generate(asked, max_new_tokens=2, num_beams=2, acting=gate)
    assert greedy > 3 and len(gate.seen) > greedy
    for gates in gate.seen[:greedy]:
        assert torch.allclose(gates, expected, atol=1e-4)
    for gates in gate.seen[greedy:]:
        assert torch.allclose(gates, expected.repeat_interleave(2, dim=0), atol=1e-4)
