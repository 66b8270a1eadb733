"""Where the gate's lines are drawn: whitening against numpy, and what calibration tells apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from unike_parts import OPEN, WIDTH, draw, opened, some_gate

from unike.editors.common.covariance import whitening
from unike.editors.unike.calibration import SIZES, calibrate, separation
from unike.editors.unike.gate import MIN_RAMP, Ramp, RisingRamp


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_whitening_is_the_inverse_root_of_the_shrunken_covariance(shrinkage: float) -> None:
    states = draw(300, WIDTH) @ draw(WIDTH, WIDTH, seed=1) + 5 * draw(WIDTH, seed=2)
    mean, whitener = whitening(states, shrinkage)
    covariance = np.cov(states.double().numpy().T, bias=True)
    shrunken = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / WIDTH * np.eye(WIDTH)
    w = whitener.double().numpy()
    assert np.allclose(w @ shrunken @ w, np.eye(WIDTH), atol=1e-3)
    assert np.allclose(w, w.T, atol=1e-5)
    assert (np.linalg.eigvalsh(w) > 0).all(), "the root, not another one"
    assert torch.allclose(mean, states.mean(dim=0), atol=1e-5)


def test_whitened_states_have_unit_covariance() -> None:
    states = draw(500, WIDTH) * torch.logspace(-1, 1, WIDTH) + 7
    mean, whitener = whitening(states, shrinkage=0.0)
    whitened = (states - mean) @ whitener
    assert torch.allclose(whitened.T @ whitened / 500, torch.eye(WIDTH), atol=1e-3)
    assert not torch.allclose(whitened.T @ whitened / 500, (states - mean).T @ (states - mean) / 500, atol=1e-1)


def test_whitening_survives_fewer_states_than_dimensions() -> None:
    for count in (1, 3):
        _, whitener = whitening(draw(count, WIDTH))
        assert whitener.isfinite().all()


# ---------------------------------------------------------------------- calibration


def probes_of(cases: int, seed: int = 0) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Four large directions say what is asked for, twenty small ones what about; all around a mean far from 0."""
    asked, facts = torch.cat([torch.eye(4), torch.full((1, 4), -0.5)]), draw(cases, WIDTH - 4, seed=seed)
    case = torch.arange(cases)

    def states(questions: Tensor, about: Tensor, noise: float, seed: int) -> Tensor:
        about = about + noise * draw(cases, WIDTH - 4, seed=seed)
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
    both = best_line({kind: opened(gate, keys_of[kind], states).gate for kind, (_, states) in probes.items()})
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
            factors = [
                opened(fixed, keys[i : i + 1], state).gate.item()
                for i, state in zip(cases.tolist(), states, strict=True)
            ]
            (related if kind in RELATED else unrelated).append(np.mean(factors))
    assert separation(gate, keys, probes) == pytest.approx(np.mean(related) - np.mean(unrelated), abs=1e-5)
