"""The gate: its ramps and cosines against numpy loops, and how edits compete for an input."""

import json

import numpy as np
import pytest
import torch
from unike_parts import CLOSED, OPEN, WIDTH, draw, opened, some_gate

from unike.backbones.forward.context import Reading
from unike.editors.unike.gate import MIN_RAMP, Gate, Ramp, RisingRamp, compete, overall


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


def test_both_cosines_are_those_of_the_definition() -> None:
    gate, keys, states = some_gate(), draw(3, 2, WIDTH, seed=3), draw(3, WIDTH, seed=4)
    centred, whitened = gate.similarities(keys, states)
    assert centred.shape == whitened.shape == (3, 2)
    mean, whitener = gate.mean.numpy().astype(float), gate.whitening.numpy().astype(float)
    found, ramps = opened(gate, keys, states), (gate.question, gate.fact.of(2))
    assert (ramps[1].low, ramps[1].high) == pytest.approx((0.1, 0.6)), "there are two edits"
    for row in range(3):
        for edit in range(2):
            a, b = keys[row, edit].numpy() - mean, states[row].numpy() - mean
            by_hand = cosine(a, b), cosine(whitener @ a, whitener @ b)
            assert (centred[row, edit].item(), whitened[row, edit].item()) == pytest.approx(by_hand, abs=1e-5)
            expected = [min(max((s - r.low) / (r.high - r.low), 0), 1) for s, r in zip(by_hand, ramps, strict=True)]
            assert found.question[row, edit].item() == pytest.approx(expected[0], abs=1e-5)
            assert found.gate[row, edit].item() == pytest.approx(expected[0] * expected[1], abs=1e-5)
    assert 0 < found.gate.max() < 1 and len(set(found.gate.flatten().tolist())) > 3
    own = opened(gate, states.unsqueeze(1), states)
    assert all(torch.allclose(each, torch.ones(3, 1)) for each in own), "its own input opens it"


def test_both_cosines_have_to_agree() -> None:
    keys, states = draw(5, 1, WIDTH, seed=3), draw(5, WIDTH, seed=4)
    assert (opened(some_gate(**OPEN), keys, states).gate == 1).all()
    for closed in ("question", "fact"):
        assert (opened(some_gate(**OPEN | {closed: CLOSED[closed]}), keys, states).gate == 0).all()


def test_what_an_input_is_about_is_as_easily_told_in_a_stack() -> None:
    gate, keys, states = some_gate(question=OPEN["question"]), draw(4, 2, WIDTH, seed=3), draw(4, WIDTH, seed=4)
    together = opened(gate, keys, states)
    for edit in (0, 1):
        alone = opened(gate, keys[:, edit : edit + 1], states)
        assert torch.allclose(together.fact[:, edit], alone.fact[:, 0], atol=1e-6)
        assert torch.equal(alone.gate, alone.fact)
    assert (together.gate <= together.fact).all() and (together.gate < together.fact).any()


# ---------------------------------------------------------------------- rivals


def test_edits_compete_for_an_input() -> None:
    found = compete(torch.tensor([[0.6, 0.55, 0.6, 0.5, -0.3], [0.1, 0.1, 0.0, 0.02, 0.09]]), 0.1)
    assert torch.allclose(found, torch.tensor([[1, 0.5, 1, 0, 0], [1, 1, 0, 0.2, 0.9]]), atol=1e-5)
    assert torch.equal(compete(torch.tensor([[0.2], [-0.7]]), 0.1), torch.ones(2, 1)), "one alone has no rivals"


def test_the_nearest_edit_is_the_one_whose_end_and_whole_are_most_alike() -> None:
    gate, keys, states = some_gate(**OPEN), draw(4, 3, WIDTH, seed=3), draw(4, WIDTH, seed=4)
    whole_keys, wholes = draw(4, 3, WIDTH, seed=5), draw(4, WIDTH, seed=6)
    alike, whitened = overall(whole_keys, wholes), gate.similarities(keys, states)[1]
    assert alike.argmax(dim=1).tolist() != whitened.argmax(dim=1).tolist()
    competing = gate.openings(Reading(keys, whole_keys), Reading(states, wholes), rivalry=1.2)
    for row, near in enumerate((whitened + 2 * alike).tolist()):
        expected = [max(1 - (max(near) - each) / 1.2, 0) for each in near]
        assert competing.fact[row].tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(competing.gate, competing.fact)
    assert ((competing.gate > 0) & (competing.gate < 1)).any() and (competing.gate == 0).any()
    alone = gate.openings(Reading(keys, whole_keys), Reading(states, wholes))
    assert torch.equal(alone.fact, torch.ones(4, 3)), "without rivalry each acts by itself"
    assert torch.equal(alone.gate, alone.fact)


def test_whole_prompts_are_compared_without_what_all_edits_share() -> None:
    keys, states = 5 + draw(4, 3, WIDTH, seed=3), 5 + draw(4, WIDTH, seed=4)
    found = overall(keys, states)
    for row in range(4):
        common = keys[row].numpy().astype(float).mean(axis=0)
        expected = [cosine(key.numpy() - common, states[row].numpy() - common) for key in keys[row]]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-5)
    assert not overall(keys[:, :1], states).any(), "one alone is told from nothing"


def test_rounding_does_not_tell_apart_two_edits_of_one_fact() -> None:
    key = 5 + draw(WIDTH, seed=3)
    twice = torch.stack([key, key + 1e-4 * draw(WIDTH, seed=4)])
    assert overall(twice, key).abs().max() < 1e-2
    assert overall(twice, 5 + draw(WIDTH, seed=5)).abs().max() < 1e-2
    others = torch.cat([twice, 5 + draw(2, WIDTH, seed=6)])
    assert overall(others, key)[:2].tolist() == pytest.approx([1, 1], abs=1e-2), "beside others they are alike"


# ---------------------------------------------------------------------- edits that only some inputs see


PRESENT = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]]).bool()


@pytest.mark.parametrize("rivalry", [None, 0.4, 2.5])
def test_an_input_is_compared_with_the_edits_that_are_there_for_it(rivalry: float | None) -> None:
    """As if it were asked alone, with those alone: their number, their rivalry and what they have in common."""
    ramps = RisingRamp(low=(-0.9, -0.7, -0.5), high=(0.3, 0.6, 0.9))
    gate = some_gate(question=Ramp(-0.9, 0.8), fact=ramps)
    rows, edits = PRESENT.shape
    last, whole = draw(rows, edits, WIDTH, seed=3), 3 + draw(rows, edits, WIDTH, seed=4)
    keys = Reading(*(part * PRESENT.unsqueeze(-1) for part in (last, whole)))  # what is not there is zeros
    read = Reading(draw(rows, WIDTH, seed=5), 3 + draw(rows, WIDTH, seed=6))
    found = gate.openings(keys, read, rivalry, PRESENT)
    for row, there in enumerate(PRESENT):
        assert not any(part[row, ~there].any() for part in found), "nothing is about an edit that is not there"
        if there.any():
            one = Reading(*(part[row] for part in read))
            alone = gate.openings(Reading(last[row, there], whole[row, there]), one, rivalry)
            for part, expected in zip(found, alone, strict=True):
                assert torch.allclose(part[row, there], expected, atol=1e-6)
    assert all(part.isfinite().all() for part in found)
    everywhere = gate.openings(Reading(last, whole), read, rivalry, torch.ones_like(PRESENT))
    for part, expected in zip(everywhere, gate.openings(Reading(last, whole), read, rivalry), strict=True):
        assert torch.allclose(part, expected, atol=1e-6), "all are there: as if nothing had been said"
    assert ((found.gate > 0) & (found.gate < 1)).any() and (found.gate < found.question * found.fact)[PRESENT].any()


# ---------------------------------------------------------------------- files


def test_a_gate_follows_a_moved_copy() -> None:
    moved = some_gate().to("meta")
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}
    assert moved.settings() == some_gate().settings()


def test_a_gate_is_made_of_its_settings_and_tensors() -> None:
    gate = some_gate()
    again = Gate.of(json.loads(json.dumps(gate.settings())), gate.tensors())
    assert again.settings() == gate.settings()
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in gate.tensors().items())
    assert len(gate.tensors()) == 2
