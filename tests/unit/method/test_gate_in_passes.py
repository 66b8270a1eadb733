"""The gate on every family: only the prompt opens and closes it, in whatever pass."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from unike_parts import CLOSED, LAYERS, OPEN, Together, draw, group_of, opened

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import Acting, Prefill, Reading
from unike.backbones.forward.hooks import Hooks, trace
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.common.pairs import FFNPatch, PairGate, install_patch
from unike.editors.unike.collaboration import FixedAlpha
from unike.editors.unike.gate import Gate, Openings, Ramp, compete, install_gate, overall
from unike.editors.unike.injection import LatentInjection
from unike.editors.unike.knowledge import Knowledge
from unike.editors.unike.memory import LatentMemory
from unike.edits.group import Group

AT = 1
"""The layer the gate is read at."""


@pytest.fixture(scope="module")
def relevance(backbone: Backbone, make_knowledge: Callable[..., Knowledge]) -> Gate:
    """Wide enough to be something between 0 and 1 for every input but its own."""
    gate = make_knowledge(backbone, gate_layer=AT, ramps=((-1.5, 1.0), (-1.2, 1.0))).gate
    assert gate is not None
    return gate


@pytest.fixture(scope="module")
def keys(backbone: Backbone, facts: list[Query]) -> Tensor:
    """``[3, 1, D]``, one for each fact."""
    return read(backbone, facts).last.unsqueeze(1)


def read(backbone: Backbone, queries: Sequence[Query]) -> Reading:
    return backbone.advance(backbone.run_to_split(backbone.encode(queries), 0), AT + 1, read=[AT]).readings[AT]


def forward(backbone: Backbone, *queries: Query, acting: Acting | None = None) -> Tensor:
    return backbone.forward(backbone.encode(queries), acting)


class Watched:
    """A gate alone, and what it says each time the last layer runs: ``[R, G]``."""

    def __init__(self, gate: Gate, group: Group) -> None:
        self.gate, self.group, self.rows = gate, group, group.rows
        self.seen: list[Tensor] = []

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        openings = install_gate(self.gate, self.group, hooks, prefill)
        hooks.add_pre(backbone.layers[-1], lambda *_: self.seen.append(openings().gate))


def watched(relevance: Gate, keys: Tensor, backbone: Backbone) -> Watched:
    return Watched(relevance, group_of(backbone, Reading(keys, keys)))


class Gated:
    """Pairs beside the last two networks, and a memory of the last layer, gated by relevance (or not, for None)."""

    rows = 1

    def __init__(self, backbone: Backbone, relevance: Gate | None, keys: Tensor) -> None:
        width = backbone.width
        self.relevance, self.group = relevance, group_of(backbone, Reading(keys, keys))
        self.patch = FFNPatch(draw(1, 5, width, seed=5) / width**0.5, draw(1, 5, seed=6), draw(1, 5, width, seed=7))
        memory = LatentMemory(draw(12, width, seed=1), 2 * draw(12, width, seed=2))
        self.injection = LatentInjection(memory, k=4, alpha=FixedAlpha(0.5))

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        of_pairs = of_memory = None
        if self.relevance is not None:
            openings = install_gate(self.relevance, self.group, hooks, prefill)
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


def test_what_is_read_is_what_the_hook_reads(
    backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]
) -> None:
    batch, gate = backbone.encode(facts), watched(relevance, keys, backbone)
    with trace(backbone.attention(AT).module) as record:
        backbone.forward(batch, gate)
    at_p = torch.stack([record.input[row, p] for row, p in enumerate(batch.prompt_last)])
    means = torch.stack([record.input[row, : p + 1].mean(dim=0) for row, p in enumerate(batch.prompt_last)])
    for state in (backbone.run_to_split(batch, 0), backbone.run_to_split(batch, AT)):
        for each in (state, backbone.shorten(state)):
            for layer in (AT, AT + 1):  # it is the next one, or it is run; a state beyond it brings it along
                if layer == AT and state.layer < AT:
                    continue
                last, whole = backbone.advance(each, layer, read=[AT]).readings[AT]
                assert torch.allclose(last, at_p, atol=1e-5)
                assert torch.allclose(whole, means, atol=1e-5)
        assert torch.equal(backbone.advance(state, AT + 1, read=[AT]).readings[AT].last, at_p)
    next_one = backbone.advance(backbone.run_to_split(batch, AT), AT, read=[AT])
    assert torch.equal(next_one.readings[AT].last, at_p)
    beyond = backbone.run_to_split(batch, AT + 1, gate)
    assert torch.equal(beyond.readings[AT].last, at_p) and torch.allclose(beyond.readings[AT].whole, means, atol=1e-5)
    assert torch.equal(keys[:, 0], at_p)
    assert torch.equal(gate.seen[0], opened(relevance, keys, at_p).gate)
    assert torch.allclose(gate.seen[0], torch.ones(3, 1)), "each row is asked about its own fact"


def test_each_row_is_compared_with_every_edit_of_its_own(
    backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]
) -> None:
    """``[B, G, D]`` keys: two batches of edits, two rows each."""
    several = torch.stack([torch.cat([keys[0], keys[1]]), torch.cat([keys[2], keys[0]])])
    asked = [facts[0], facts[1], facts[2], facts[1]]
    gate = watched(relevance, several, backbone)
    forward(backbone, *asked, acting=gate)
    (factors,) = gate.seen
    assert factors.shape == (4, 2)
    states = read(backbone, asked).last
    for row in range(4):
        for edit in range(2):
            expected = opened(relevance, several[row // 2, edit : edit + 1], states[row]).gate
            assert factors[row, edit].item() == pytest.approx(expected.item(), abs=1e-5)
    assert factors[0, 0] == pytest.approx(1, abs=1e-4) and factors[2, 0] == pytest.approx(1, abs=1e-4)
    assert 0 < factors[3].min() < factors[3].max() < 0.9999


def test_answer_tokens_have_no_say(backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]) -> None:
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
        alone = watched(relevance, keys[row : row + 1], backbone)
        forward(backbone, query, acting=alone)
        assert torch.allclose(alone.seen[0], first[row : row + 1], atol=1e-4)


# ---------------------------------------------------------------------- what it does


def test_a_closed_gate_is_no_edit_bit_for_bit(
    backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]
) -> None:
    plain, answers = forward(backbone, *facts), backbone.generate(facts, max_new_tokens=3)
    beams = backbone.generate(facts, max_new_tokens=2, num_beams=2)
    assert not torch.allclose(forward(backbone, *facts, acting=Gated(backbone, None, keys)), plain, atol=1e-1)
    for closed in (replace(relevance, question=CLOSED["question"]), replace(relevance, fact=CLOSED["fact"])):
        acting = Gated(backbone, closed, keys)
        assert torch.equal(forward(backbone, *facts, acting=acting), plain)
        assert backbone.generate(facts, max_new_tokens=3, acting=acting) == answers
        assert backbone.generate(facts, max_new_tokens=2, num_beams=2, acting=acting) == beams
    assert torch.equal(forward(backbone, *facts), plain)


def test_an_open_gate_is_no_gate(backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]) -> None:
    found = []
    for gate in (None, replace(relevance, **OPEN)):
        acting = Gated(backbone, gate, keys)
        answers = backbone.generate(facts, max_new_tokens=3, acting=acting)
        beams = backbone.generate(facts, max_new_tokens=3, num_beams=2, acting=acting)
        found.append((forward(backbone, *facts, acting=acting), answers, beams))
    (ungated, *answers), (logits, *same) = found
    assert torch.equal(logits, ungated)
    assert same == answers


def test_the_gate_opens_for_each_row_by_its_own_prompt(
    backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]
) -> None:
    """Row 1 is asked what it was edited with, the others something else; the split agrees wherever it is."""
    asked = [facts[2], facts[1], facts[0]]
    batch = backbone.encode(asked)
    plain = backbone.forward(batch)
    centred = relevance.similarities(keys, read(backbone, asked).last)[0][:, 0]
    low = max(centred[0].item(), centred[2].item())
    assert centred[1] == pytest.approx(1, abs=1e-5) and low < 0.999
    narrow = Gated(backbone, replace(relevance, question=Ramp(low, (low + 1) / 2), fact=OPEN["fact"]), keys)
    ungated, logits = backbone.forward(batch, Gated(backbone, None, keys)), backbone.forward(batch, narrow)
    for split in (0, 1):
        state = backbone.run_to_split(batch, split, narrow)
        assert torch.equal(backbone.run_from_split(state, acting=narrow), logits)
    advanced = backbone.advance(backbone.run_to_split(batch, 0, narrow), -1, narrow)
    assert torch.equal(backbone.run_from_split(advanced, acting=narrow), logits), "what was read on the way is kept"
    both = Together(narrow, Gated(backbone, replace(relevance, fact=CLOSED["fact"]), keys))
    assert torch.equal(backbone.forward(batch, both), logits), "gates stack, and a closed one changes nothing"
    assert torch.equal(logits[[0, 2]], plain[[0, 2]])
    assert torch.equal(logits[1], ungated[1])
    assert not torch.allclose(logits[1], plain[1], atol=1e-2)


def test_a_gate_that_was_not_reached_says_so(
    backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]
) -> None:
    """Unless it acted while the pass was run to where it is taken up again."""
    batch, acting = backbone.encode(facts), Gated(backbone, relevance, keys)
    with pytest.raises(UnikeError, match="the gate is read at layer 1, which this pass has not reached"):
        backbone.run_from_split(backbone.run_to_split(batch, 2), acting=acting)
    taken_up = backbone.run_from_split(backbone.run_to_split(batch, 2, acting), acting=acting)
    assert torch.equal(taken_up, backbone.forward(batch, acting))


def test_edits_of_a_stack_compete_by_what_is_read_in_the_whole_prompt(
    backbone: Backbone, relevance: Gate, facts: list[Query]
) -> None:
    """In one pass, split, shortened, and with beams."""
    stack = Reading(*(part.unsqueeze(0) for part in read(backbone, facts)))  # [1, 3, D]
    asked = [facts[2], facts[0], replace(facts[1], prompt="Which size has the thing in the middle of it?")]
    batch, readings = backbone.encode(asked), read(backbone, asked)
    last, whole = (part.expand(3, -1, -1) for part in stack)
    alike = relevance.similarities(last, readings.last)[1] + 2 * overall(whole, readings.whole)
    expected = compete(alike, 4.0)
    assert expected.argmax(dim=1).tolist()[:2] == [2, 0] and ((expected > 0) & (expected < 1)).any()
    gate = Watched(replace(relevance, **OPEN), group_of(backbone, stack, rivalry=4.0))
    backbone.forward(batch, gate)
    backbone.run_from_split(backbone.shorten(backbone.run_to_split(batch, AT)), acting=gate)
    backbone.run_from_split(backbone.advance(backbone.run_to_split(batch, AT), 2, read=[AT]), acting=gate)
    backbone.generate(asked, max_new_tokens=2, acting=gate)
    greedy = len(gate.seen)
    backbone.generate(asked, max_new_tokens=2, num_beams=2, acting=gate)
    assert greedy > 3 and len(gate.seen) > greedy
    for gates in gate.seen[:greedy]:
        assert torch.allclose(gates, expected, atol=1e-4)
    for gates in gate.seen[greedy:]:
        assert torch.allclose(gates, expected.repeat_interleave(2, dim=0), atol=1e-4)
