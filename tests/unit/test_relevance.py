"""The gate: its ramps and cosines against numpy loops, and on every family that only the prompt opens and closes it."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import Hooks, trace
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.common.pairs import FFNPatch, PairGate, install_patch
from unike.editors.unike.calibration import calibrate, separation, whitening
from unike.editors.unike.collaboration import FixedAlpha
from unike.editors.unike.gate import MIN_RAMP, SIZES, Gate, Ramp, Reading, RisingRamp, compete, overall
from unike.editors.unike.injection import LatentInjection
from unike.editors.unike.knowledge import Knowledge
from unike.editors.unike.memory import LatentMemory

D = 24

OPEN, CLOSED = (
    {"question": Ramp(-3.0, -2.0), "fact": RisingRamp((-3.0,), (-2.0,))},
    {"question": Ramp(2.0, 3.0), "fact": RisingRamp((2.0,), (3.0,))},
)
"""Wherever a cosine may lie."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_gate(**settings: Any) -> Gate:
    spread = draw(D, D, seed=1)
    chosen = {"layer": 1, "mean": draw(D, seed=2), "whitening": spread @ spread.T}
    return Gate(**(chosen | {"question": Ramp(-0.2, 0.6), "fact": RisingRamp((-0.5, 0.1), (0.5, 0.6))} | settings))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True)) / np.sqrt((a**2).sum()) / np.sqrt((b**2).sum()))


# ---------------------------------------------------------------------- ramps


def test_a_ramp_is_a_clamped_line() -> None:
    values = [-9.0, -0.2, -0.1, 0.0, 0.1, 0.3, 0.7, 9.0]
    expected = [0, 0, 0.2, 0.4, 0.6, 1, 1, 1]
    assert Ramp(-0.2, 0.3)(torch.tensor(values)).tolist() == pytest.approx(expected, abs=1e-6)
    for low, high in [(0.5, 0.5), (0.6, 0.5), (float("nan"), 1.0)]:
        with pytest.raises(ValueError, match=f"low={low} must be below high={high}"):
            Ramp(low, high)


def test_a_ramp_lies_between_two_ends_and_is_no_step() -> None:
    for ramp in (Ramp.between(0.2, 0.6), Ramp.between(0.6, 0.2)):
        assert (ramp.low, ramp.high) == pytest.approx((0.2, 0.6))
    touching = Ramp.between(0.5, 0.499)
    assert (touching.low, touching.high) == pytest.approx((0.4995 - MIN_RAMP / 2, 0.4995 + MIN_RAMP / 2))


def test_a_ramp_rises_with_the_stack() -> None:
    rising = RisingRamp(low=(0.1, 0.2, 0.5), high=(0.3, 0.4, 0.6))
    expected = {1: (0.1, 0.3), 2: (0.2, 0.4), 4: (0.5, 0.6), 5: (0.5, 0.6), 1000: (0.5, 0.6)}
    expected[3] = (0.2 + 0.3 * np.log2(1.5), 0.4 + 0.2 * np.log2(1.5))
    assert {n: (rising.of(n).low, rising.of(n).high) for n in expected} == {
        n: pytest.approx(ends) for n, ends in expected.items()
    }


# ---------------------------------------------------------------------- cosines


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_whitening_is_the_inverse_root_of_the_shrunken_covariance(shrinkage: float) -> None:
    states = draw(300, D) @ draw(D, D, seed=1) + 5 * draw(D, seed=2)
    mean, whitener = whitening(states, shrinkage)
    covariance = np.cov(states.double().numpy().T, bias=True)
    shrunken = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / D * np.eye(D)
    w = whitener.double().numpy()
    assert np.allclose(w @ shrunken @ w, np.eye(D), atol=1e-3)
    assert np.allclose(w, w.T, atol=1e-5)
    assert (np.linalg.eigvalsh(w) > 0).all(), "the root, not another one"
    assert torch.allclose(mean, states.mean(dim=0), atol=1e-5)


def test_whitened_states_have_unit_covariance() -> None:
    states = draw(500, D) * torch.logspace(-1, 1, D) + 7
    mean, whitener = whitening(states, shrinkage=0.0)
    whitened = (states - mean) @ whitener
    assert torch.allclose(whitened.T @ whitened / 500, torch.eye(D), atol=1e-3)
    assert not torch.allclose(whitened.T @ whitened / 500, (states - mean).T @ (states - mean) / 500, atol=1e-1)


def test_whitening_survives_fewer_states_than_dimensions() -> None:
    for count in (1, 3):
        _, whitener = whitening(draw(count, D))
        assert whitener.isfinite().all()


def test_both_cosines_are_those_of_the_definition() -> None:
    gate, keys, states = some_gate(), draw(3, 2, D, seed=3), draw(3, D, seed=4)
    centred, whitened = gate.similarities(keys, states)
    assert centred.shape == whitened.shape == (3, 2)
    mean, whitener = gate.mean.numpy().astype(float), gate.whitening.numpy().astype(float)
    factors, ramps = gate(keys, states), (gate.question, gate.fact.of(2))
    assert (ramps[1].low, ramps[1].high) == pytest.approx((0.1, 0.6)), "there are two edits"
    for row in range(3):
        for edit in range(2):
            a, b = keys[row, edit].numpy() - mean, states[row].numpy() - mean
            by_hand = cosine(a, b), cosine(whitener @ a, whitener @ b)
            assert (centred[row, edit].item(), whitened[row, edit].item()) == pytest.approx(by_hand, abs=1e-5)
            expected = [min(max((s - r.low) / (r.high - r.low), 0), 1) for s, r in zip(by_hand, ramps, strict=True)]
            assert factors[row, edit].item() == pytest.approx(expected[0] * expected[1], abs=1e-5)
    assert 0 < factors.max() < 1 and len(set(factors.flatten().tolist())) > 3
    assert torch.allclose(gate(states.unsqueeze(1), states), torch.ones(3, 1)), "its own input opens it"


def test_both_cosines_have_to_agree() -> None:
    keys, states = draw(5, 1, D, seed=3), draw(5, D, seed=4)
    assert (some_gate(**OPEN)(keys, states) == 1).all()
    for closed in ("question", "fact"):
        assert (some_gate(**OPEN | {closed: CLOSED[closed]})(keys, states) == 0).all()


# ---------------------------------------------------------------------- calibration


def probes_of(cases: int, seed: int = 0) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Four large directions say what is asked for, twenty small ones what about; all around a mean far from 0."""
    asked, facts = torch.cat([torch.eye(4), torch.full((1, 4), -0.5)]), draw(cases, D - 4, seed=seed)
    case = torch.arange(cases)

    def states(questions: Tensor, about: Tensor, noise: float, seed: int) -> Tensor:
        about = about + noise * draw(cases, D - 4, seed=seed)
        return torch.cat([20 * asked[questions] + 2 * draw(cases, 4, seed=seed + 1), about], dim=1) + 20

    same, other = torch.zeros_like(case), 1 + case % 4
    return states(same, facts, 0.0, seed + 10), {
        "t_generality": (case, states(same, facts, 0.3, seed + 20)),
        "m_generality": (case, states(same, facts, 0.7, seed + 30)),
        "specificity": (case, states(other, facts, 0.0, seed + 40)),
        "m_locality": (case, states(same, facts.roll(1, dims=0), 0.0, seed + 50)),
        "t_locality": (case, states(other, facts.roll(2, dims=0), 0.0, seed + 60)),
    }


RELATED = ("t_generality", "m_generality")


def best_line(scores: dict[str, Tensor]) -> float:
    """How much more often rephrasings than the worst kind of others lie above a line, wherever it is drawn best."""

    def at(line: float) -> float:
        above = {kind: (found > line).float().mean().item() for kind, found in scores.items()}
        return min(above[kind] for kind in RELATED) - max(above[kind] for kind in scores.keys() - set(RELATED))

    return max(at(line) for line in np.linspace(-1, 1, 401))


def test_calibration_separates_what_one_cosine_does_not() -> None:
    gate = calibrate(2, *probes_of(300))
    assert gate.layer == 2
    keys, probes = probes_of(300, seed=1000)  # others than those it was calibrated on
    keys_of = {kind: keys[cases].unsqueeze(1) for kind, (cases, _) in probes.items()}
    alone = [
        best_line({kind: gate.similarities(keys_of[kind], states)[which] for kind, (_, states) in probes.items()})
        for which in (0, 1)
    ]
    gate = replace(gate, fact=RisingRamp(gate.fact.low[:1], gate.fact.high[:1]))
    both = best_line({kind: gate(keys_of[kind], states) for kind, (_, states) in probes.items()})
    assert max(alone) < 0.85 < 0.95 < both, (alone, both)
    assert separation(gate, keys, probes) > 0.9
    assert separation(replace(gate, fact=OPEN["fact"]), keys, probes) < 0.8
    assert separation(replace(gate, question=OPEN["question"]), keys, probes) < 0.8


def test_calibration_draws_each_line_between_what_its_cosine_tells_apart() -> None:
    keys, probes = probes_of(100)
    gate = calibrate(0, keys, probes, error=0.05)
    everything = torch.cat([keys, *(states for _, states in probes.values())])
    mean, whitener = whitening(everything)
    assert torch.equal(gate.mean, mean) and torch.equal(gate.whitening, whitener)
    measured = {kind: gate.similarities(keys.unsqueeze(1), states) for kind, (_, states) in probes.items()}

    def ends(which: int, kinds: tuple[str, ...], unrelated: tuple[str, ...]) -> tuple[float, float]:
        found = [torch.cat([measured[kind][which] for kind in some]).flatten() for some in (kinds, unrelated)]
        return tuple(sorted((np.quantile(found[0], 0.05), np.quantile(found[1], 0.95))))  # type: ignore[return-value]

    locality = ("m_locality", "t_locality")
    assert (gate.question.low, gate.question.high) == pytest.approx(ends(0, RELATED, ("specificity",)), abs=1e-4)
    chance = torch.cat([gate.similarities(keys, state)[1] for state in probes["m_locality"][1]])
    assert len(gate.fact.low) == len(gate.fact.high) == SIZES
    for size, (low, high) in enumerate(zip(gate.fact.low, gate.fact.high, strict=True)):
        beyond = (chance > low).float().mean().item(), (chance > high).float().mean().item()
        assert beyond[0] == pytest.approx(0.125 / 2**size, abs=1.5 / len(chance)), "of all pairs"
        if high > low + MIN_RAMP:
            assert beyond[1] == pytest.approx(0.05 / 2**size, abs=1.5 / len(chance))
        assert high >= low + MIN_RAMP - 1e-6
    assert gate.fact.high[0] > gate.fact.low[0] + MIN_RAMP
    del probes["specificity"]
    without = calibrate(0, keys, probes, error=0.05)
    measured = {kind: without.similarities(keys.unsqueeze(1), states) for kind, (_, states) in probes.items()}
    assert (without.question.low, without.question.high) == pytest.approx(ends(0, RELATED, locality), abs=1e-4)


def test_separation_is_a_difference_of_means() -> None:
    rising = RisingRamp(low=(-1, -0.9, -0.8, -0.6, -0.4, -0.1), high=(1, 0.9, 0.8, 0.7, 0.6, 0.5))
    gate, (keys, probes) = some_gate(question=Ramp(-1, 1), fact=rising), probes_of(20)
    related, unrelated = [], []
    for size in (0, 4):  # 1 and 16 edits
        fixed = replace(gate, fact=RisingRamp((rising.low[size],), (rising.high[size],)))
        for kind, (cases, states) in probes.items():
            factors = [fixed(keys[i : i + 1], state).item() for i, state in zip(cases.tolist(), states, strict=True)]
            (related if kind in RELATED else unrelated).append(np.mean(factors))
    assert separation(gate, keys, probes) == pytest.approx(np.mean(related) - np.mean(unrelated), abs=1e-5)


# ---------------------------------------------------------------------- on a backbone


LAYERS = (-2, -1)


@pytest.fixture(scope="module")
def relevance(backbone: Backbone, make_knowledge: Callable[..., Knowledge]) -> Gate:
    """Read at layer 1, and wide enough to be something between 0 and 1 for every input but its own."""
    gate = make_knowledge(backbone, gate_layer=1, ramps=((-1.5, 1.0), (-1.2, 1.0))).gate
    assert gate is not None
    return gate


@pytest.fixture(scope="module")
def keys(backbone: Backbone, relevance: Gate, facts: list[Query]) -> Tensor:
    """``[3, 1, D]``, one for each fact."""
    return read(relevance, backbone, facts).last.unsqueeze(1)


def read(relevance: Gate, backbone: Backbone, queries: Sequence[Query]) -> Reading:
    return relevance.read(backbone, backbone.run_to_split(backbone.encode(queries), 0))


def forward(backbone: Backbone, *queries: Query) -> Tensor:
    return backbone.forward(backbone.encode(queries))


@contextmanager
def watched(relevance: Gate, keys: Tensor, backbone: Backbone) -> Iterator[list[Tensor]]:
    """What the gate says each time the last layer runs."""
    seen: list[Tensor] = []
    with Hooks() as hooks:
        gate = relevance.install(Reading(keys, keys), backbone, hooks)
        hooks.add_pre(backbone.layers[-1], lambda *_: seen.append(gate()))
        yield seen


def every_pair(gate: Gate) -> PairGate:
    """The gate of one edit's five pairs."""
    return PairGate(gate().expand(-1, 5), torch.zeros(1))


@contextmanager
def gated(backbone: Backbone, relevance: Gate | None, keys: Tensor) -> Iterator[None]:
    """Pairs beside the last two networks, and a memory of the last layer, gated by relevance (or not, for None)."""
    width, one = backbone.width, lambda gate: gate and (lambda: gate()[:, 0])
    patch = FFNPatch(draw(1, 5, width, seed=5) / width**0.5, draw(1, 5, seed=6), draw(1, 5, width, seed=7))
    memory = LatentMemory(draw(12, width, seed=1), 2 * draw(12, width, seed=2))
    with Hooks() as hooks:
        gate: Gate | None = relevance and relevance.install(Reading(keys, keys), backbone, hooks)
        for layer in LAYERS:
            install_patch(lambda: patch, backbone.ffn(layer), hooks, gate and partial(every_pair, gate))
        LatentInjection(memory, k=4, alpha=FixedAlpha(0.5)).install(backbone, -1, hooks, one(gate))
        yield


def test_what_is_read_is_what_the_hook_reads(
    backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]
) -> None:
    batch = backbone.encode(facts)
    with trace(backbone.attention(1).module) as record, watched(relevance, keys, backbone) as seen:
        backbone.forward(batch)
    at_p = torch.stack([record.input[row, p] for row, p in enumerate(batch.prompt_last)])
    means = torch.stack([record.input[row, : p + 1].mean(dim=0) for row, p in enumerate(batch.prompt_last)])
    for state in (backbone.run_to_split(batch, 0), backbone.run_to_split(batch, 1)):
        for each in (state, backbone.shorten(state)):
            last, whole = relevance.read(backbone, each)
            assert torch.allclose(last, at_p, atol=1e-5)
            assert torch.allclose(whole, means, atol=1e-5)
        assert torch.equal(relevance.read(backbone, state).last, at_p)
    assert torch.equal(keys[:, 0], at_p)
    assert torch.equal(seen[0], relevance(keys, at_p))
    assert torch.allclose(seen[0], torch.ones(3, 1)), "each row is asked about its own fact"


def test_each_row_is_compared_with_every_edit_of_its_own(
    backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]
) -> None:
    """``[B, G, D]`` keys: two batches of edits, two rows each."""
    several = torch.stack([torch.cat([keys[0], keys[1]]), torch.cat([keys[2], keys[0]])])
    asked = [facts[0], facts[1], facts[2], facts[1]]
    with watched(relevance, several, backbone) as seen:
        forward(backbone, *asked)
    (factors,) = seen
    assert factors.shape == (4, 2)
    states = read(relevance, backbone, asked).last
    for row in range(4):
        for edit in range(2):
            expected = relevance(several[row // 2, edit : edit + 1], states[row])
            assert factors[row, edit].item() == pytest.approx(expected.item(), abs=1e-5)
    assert factors[0, 0] == pytest.approx(1, abs=1e-4) and factors[2, 0] == pytest.approx(1, abs=1e-4)
    assert 0 < factors[3].min() < factors[3].max() < 0.9999


def test_answer_tokens_have_no_say(backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]) -> None:
    """Neither teacher-forced ones nor generated ones, in a batch, with beams, or alone."""
    asked = [facts[1], facts[2], facts[0]]
    with watched(relevance, keys, backbone) as seen:
        for targets in [("a cat", "red", "bob"), ("xq!", "a very long answer that is quite another", "5")]:
            forward(backbone, *(replace(query, target=t) for query, t in zip(asked, targets, strict=True)))
        forward(backbone, *(replace(query, target=None) for query in asked))
        greedy = len(seen)
        backbone.generate(asked, max_new_tokens=4)
        beams = len(seen)
        backbone.generate(asked, max_new_tokens=3, num_beams=2)
    first = seen[0]
    assert (first < 0.9999).all() and len(set(first[:, 0].tolist())) == 3
    for factors in seen[:beams]:
        assert torch.allclose(factors, first, atol=1e-4)
    for factors in seen[beams:]:
        assert torch.allclose(factors, first.repeat_interleave(2, dim=0), atol=1e-4)
    assert len(seen) - beams > 1
    assert all(torch.equal(factors, seen[greedy]) for factors in seen[greedy:beams])
    for row, query in enumerate(asked):
        with watched(relevance, keys[row : row + 1], backbone) as alone:
            forward(backbone, query)
        assert torch.allclose(alone[0], first[row : row + 1], atol=1e-4)


def test_a_closed_gate_is_no_edit_bit_for_bit(
    backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]
) -> None:
    plain, answers = forward(backbone, *facts), backbone.generate(facts, max_new_tokens=3)
    beams = backbone.generate(facts, max_new_tokens=2, num_beams=2)
    with gated(backbone, None, keys):
        assert not torch.allclose(forward(backbone, *facts), plain, atol=1e-1)
    for closed in (replace(relevance, question=CLOSED["question"]), replace(relevance, fact=CLOSED["fact"])):
        with gated(backbone, closed, keys):
            assert torch.equal(forward(backbone, *facts), plain)
            assert backbone.generate(facts, max_new_tokens=3) == answers
            assert backbone.generate(facts, max_new_tokens=2, num_beams=2) == beams
    assert torch.equal(forward(backbone, *facts), plain)


def test_an_open_gate_is_no_gate(backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]) -> None:
    with gated(backbone, None, keys):
        ungated, answers = forward(backbone, *facts), backbone.generate(facts, max_new_tokens=3)
        beams = backbone.generate(facts, max_new_tokens=3, num_beams=2)
    with gated(backbone, replace(relevance, **OPEN), keys):
        assert torch.equal(forward(backbone, *facts), ungated)
        assert backbone.generate(facts, max_new_tokens=3) == answers
        assert backbone.generate(facts, max_new_tokens=3, num_beams=2) == beams


def test_the_gate_opens_for_each_row_by_its_own_prompt(
    backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]
) -> None:
    """Row 1 is asked what it was edited with, the others something else; the split agrees wherever it is."""
    batch = backbone.encode([facts[2], facts[1], facts[0]])
    plain = backbone.forward(batch)
    states = relevance.read(backbone, backbone.run_to_split(batch, 0)).last
    centred = relevance.similarities(keys, states)[0][:, 0]
    low = max(centred[0].item(), centred[2].item())
    assert centred[1] == pytest.approx(1, abs=1e-5) and low < 0.999
    narrow = replace(relevance, question=Ramp(low, (low + 1) / 2), fact=OPEN["fact"])
    with gated(backbone, None, keys):
        ungated = backbone.forward(batch)
    with gated(backbone, narrow, keys):
        logits = backbone.forward(batch)
        for split in (0, 1):
            assert torch.equal(backbone.run_from_split(backbone.run_to_split(batch, split)), logits)
        advanced = backbone.advance(backbone.run_to_split(batch, 0), -1)
        assert torch.equal(backbone.run_from_split(advanced), logits), "what was read on the way is kept"
        with gated(backbone, replace(relevance, fact=CLOSED["fact"]), keys):
            assert torch.equal(backbone.forward(batch), logits), "gates stack, and a closed one changes nothing"
    assert torch.equal(logits[[0, 2]], plain[[0, 2]])
    assert torch.equal(logits[1], ungated[1])
    assert not torch.allclose(logits[1], plain[1], atol=1e-2)


def test_a_gate_that_was_not_reached_says_so(
    backbone: Backbone, relevance: Gate, keys: Tensor, facts: list[Query]
) -> None:
    batch = backbone.encode(facts)
    state = backbone.run_to_split(batch, 2)
    with gated(backbone, relevance, keys):
        with pytest.raises(UnikeError, match="the gate is read at layer 1, which this pass has not reached"):
            backbone.run_from_split(state)
        backbone.run_from_split(backbone.run_to_split(batch, 2))
        with pytest.raises(UnikeError, match="needs to know where the prompt ends"):
            backbone.model(**batch.inputs)


def test_a_gate_follows_a_moved_copy(pictures: list[Path]) -> None:
    moved = some_gate().to("meta")
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}
    assert moved.settings() == some_gate().settings()


def test_a_gate_is_made_of_its_settings_and_tensors() -> None:
    gate = some_gate()
    again = Gate.of(json.loads(json.dumps(gate.settings())), gate.tensors())
    assert again.settings() == gate.settings()
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in gate.tensors().items())
    assert len(gate.tensors()) == 2


def test_edits_compete_for_an_input() -> None:
    found = compete(torch.tensor([[0.6, 0.55, 0.6, 0.5, -0.3], [0.1, 0.1, 0.0, 0.02, 0.09]]), 0.1)
    assert torch.allclose(found, torch.tensor([[1, 0.5, 1, 0, 0], [1, 1, 0, 0.2, 0.9]]), atol=1e-5)
    assert torch.equal(compete(torch.tensor([[0.2], [-0.7]]), 0.1), torch.ones(2, 1)), "one alone has no rivals"


def test_the_nearest_edit_is_the_one_whose_end_and_whole_are_most_alike() -> None:
    gate, keys, states = some_gate(**OPEN), draw(4, 3, D, seed=3), draw(4, D, seed=4)
    alike, whitened = draw(4, 3, seed=5).tanh(), gate.similarities(keys, states)[1]
    opened = gate.opened(keys, states, alike, rivalry=1.2)
    for row, near in enumerate((whitened + 2 * alike).tolist()):
        expected = [max(1 - (max(near) - each) / 1.2, 0) for each in near]
        assert opened.fact[row].tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(opened.gate, opened.fact)
    assert ((opened.gate > 0) & (opened.gate < 1)).any() and (opened.gate == 0).any()
    alone = gate.opened(keys, states, alike)
    assert torch.equal(alone.fact, torch.ones(4, 3)), "without rivalry each acts by itself"
    assert torch.equal(alone.gate, alone.fact)


def test_whole_prompts_are_compared_without_what_all_edits_share() -> None:
    keys, states = 5 + draw(4, 3, D, seed=3), 5 + draw(4, D, seed=4)
    found = overall(keys, states)
    for row in range(4):
        common = keys[row].numpy().astype(float).mean(axis=0)
        expected = [cosine(key.numpy() - common, states[row].numpy() - common) for key in keys[row]]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-5)
    assert not overall(keys[:, :1], states).any(), "one alone is told from nothing"


def test_rounding_does_not_tell_apart_two_edits_of_one_fact() -> None:
    key = 5 + draw(D, seed=3)
    twice = torch.stack([key, key + 1e-4 * draw(D, seed=4)])
    assert overall(twice, key).abs().max() < 1e-2
    assert overall(twice, 5 + draw(D, seed=5)).abs().max() < 1e-2
    others = torch.cat([twice, 5 + draw(2, D, seed=6)])
    assert overall(others, key)[:2].tolist() == pytest.approx([1, 1], abs=1e-2), "beside others they are alike"


def test_edits_of_a_stack_compete_by_what_is_read_in_the_whole_prompt(
    backbone: Backbone, relevance: Gate, facts: list[Query]
) -> None:
    """In one pass, split, shortened, and with beams."""
    stack = Reading(*(part.unsqueeze(0) for part in read(relevance, backbone, facts)))  # [1, 3, D]
    asked = [facts[2], facts[0], replace(facts[1], prompt="Which size has the thing in the middle of it?")]
    batch, readings = backbone.encode(asked), read(relevance, backbone, asked)
    wide = replace(relevance, **OPEN)
    every = Reading(*(part.expand(3, -1, -1) for part in stack))
    expected = wide.opened(every.last, readings.last, overall(every.whole, readings.whole), 4.0).gate
    assert expected.argmax(dim=1).tolist()[:2] == [2, 0] and ((expected > 0) & (expected < 1)).any()
    seen: list[Tensor] = []
    with Hooks() as hooks:
        gate = wide.install(stack, backbone, hooks, rivalry=4.0)
        hooks.add_pre(backbone.layers[-1], lambda *_: seen.append(gate()))
        backbone.forward(batch)
        backbone.run_from_split(backbone.shorten(backbone.run_to_split(batch, 1)))
        backbone.generate(asked, max_new_tokens=2)
        greedy = len(seen)
        backbone.generate(asked, max_new_tokens=2, num_beams=2)
    for gates in seen[:greedy]:
        assert torch.allclose(gates, expected, atol=1e-4)
    for gates in seen[greedy:]:
        assert torch.allclose(gates, expected.repeat_interleave(2, dim=0), atol=1e-4)


def test_what_an_input_is_about_is_as_easily_told_in_a_stack() -> None:
    gate, keys, states = some_gate(question=OPEN["question"]), draw(4, 2, D, seed=3), draw(4, D, seed=4)
    together = gate.opened(keys, states)
    for edit in (0, 1):
        alone = gate.opened(keys[:, edit : edit + 1], states)
        assert torch.allclose(together.fact[:, edit], alone.fact[:, 0], atol=1e-6)
        assert torch.equal(alone.gate, alone.fact)
    assert (together.gate <= together.fact).all() and (together.gate < together.fact).any()
