"""Where the gate's lines are drawn: the metric against numpy, and what calibration tells apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from unike_parts import draw

from unike.editors.unike.calibration import (
    COHORT,
    HALF,
    SIZES,
    WITHIN,
    Pictures,
    calibrate,
    cohort_of,
    learn_metric,
    measured,
    within,
)
from unike.editors.unike.gate import Gate, Ramp

SEEN, KIND = 24, 8
"""Numbers of what is seen, and how many of them say of what kind a thing is."""


def drawn(things: int = 60, seed: int = 0, kinds: int = 6) -> Pictures:
    """Two pictures of each thing, one after the other: things of a kind are alike in large directions, pictures of a
    thing in small ones, and by whose hand they are is heard loudest of all."""
    kind = torch.arange(things) % kinds
    large, small = 4 * draw(kinds, KIND, seed=7)[kind], draw(things, SEEN - KIND - 2, seed=seed)
    thing = torch.arange(things).repeat_interleave(2)
    hand = 8 * draw(2 * things, 2, seed=seed + 1)
    noise = 0.25 * draw(2 * things, SEEN, seed=seed + 2)
    seen = 5 + torch.cat([large[thing], small[thing], hand], dim=1) + noise
    first = [2 * i for i in range(things)]
    of_kind = [2 * ((i + kinds) % things) + 1 for i in range(things)]
    pairs = [(i, i + 1) for i in first], list(zip(first, of_kind, strict=True))
    return Pictures(seen, thing, *pairs, views=seen[:0], viewed=thing[:0])


def told_apart(cosines: Tensor, pictures: Pictures) -> float:
    """How often a pair of one thing is more alike than a near one, ``cosines [n, n]``: 0.5 is chance."""
    same, near = (cosines[tuple(torch.tensor(pairs).T)] for pairs in (pictures.same, pictures.near))
    return (same.unsqueeze(1) > near).float().mean().item()


# ---------------------------------------------------------------------- the metric


def test_the_metric_tells_two_hands_of_a_thing_from_near_things() -> None:
    """Of things that it was not learned from, and better than what is seen itself does."""
    mean, metric = learn_metric(drawn())
    other = drawn(seed=1000)
    plain = normalize(other.seen - mean, dim=1)
    learned = normalize((other.seen - mean) @ metric, dim=1)
    assert told_apart(learned @ learned.T, other) > 0.95
    assert told_apart(learned @ learned.T, other) > told_apart(plain @ plain.T, other) + 0.2


def test_within_is_the_shrunken_covariance_about_the_things_means() -> None:
    """Each thing weighs the same, one picture alone says nothing."""
    thing = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])
    states = draw(8, 5)
    expected = np.zeros((5, 5))
    for one in (0, 1, 3):
        apart = states[thing == one].double().numpy()
        apart = apart - apart.mean(axis=0)
        expected += apart.T @ apart / len(apart) / 3
    expected = (1 - WITHIN) * expected + WITHIN * np.trace(expected) / 5 * np.eye(5)
    assert np.allclose(within(states, thing).numpy(), expected, atol=1e-5)


def test_behind_the_metric_things_vary_evenly_within() -> None:
    """But for what is shrunken: the large hand is brought down to the size of the rest."""
    pictures = drawn(200)
    mean, metric = learn_metric(pictures)
    z = (pictures.seen - mean) @ metric
    spread = within(z, pictures.thing).diagonal()
    assert spread.max() < 10 * spread.min()
    assert torch.allclose(mean, pictures.seen.mean(dim=0))
    assert metric.shape == (SEEN, SEEN) and metric.isfinite().all()
    assert learn_metric(pictures, width=5)[1].shape == (SEEN, 5)


def test_a_direction_without_spread_or_fewer_pictures_than_numbers_do_no_harm() -> None:
    few = drawn(3, kinds=2)
    still = replace(few, seen=torch.cat([few.seen[:, :-2], torch.ones(6, 2)], dim=1))
    nothing = replace(few, seen=torch.ones(6, SEEN))
    for pictures in (few, still, nothing):
        mean, metric = learn_metric(pictures)
        assert mean.isfinite().all() and metric.isfinite().all()


def test_a_cohort_is_spread_over_all_and_of_unit_length() -> None:
    def cohort(n: int) -> Tensor:
        shown = Pictures(draw(n, 3), torch.arange(n), (), (), draw(0, 3), torch.arange(0))
        return cohort_of(shown, torch.zeros(3), torch.eye(3))

    some, many = cohort(7), cohort(3 * COHORT)
    assert torch.allclose(some, normalize(draw(7, 3), dim=1)) and len(many) == COHORT
    assert torch.allclose(many.norm(dim=1), torch.ones(COHORT), atol=1e-5)


# ---------------------------------------------------------------------- calibration


def opening(gate: Gate, pictures: Pictures, n_edits: int) -> tuple[float, float, float]:
    """How often pairs of a thing, near ones and arbitrary ones pass the middle of a ramp."""
    picture, usual = gate.pictured(pictures.seen, len(pictures.seen))
    beyond = picture @ picture.T - (usual + usual.T) / 2
    ramp: Ramp = gate.about.of(n_edits)
    passed = beyond > (ramp.low + ramp.high) / 2
    same, near = (
        passed[tuple(torch.tensor(pairs).T)].float().mean().item() for pairs in (pictures.same, pictures.near)
    )
    others = pictures.thing.unsqueeze(1) != pictures.thing
    return same, near, passed[others].float().mean().item()


def test_near_things_are_let_in_less_often_than_the_same() -> None:
    gate, shares = calibrate(drawn(120))
    assert shares["same"] > 0.8 > 0.2 > shares["near"] and shares["other"] < 0.1
    same, near, other = opening(gate, drawn(120, seed=1000), 1)
    assert same > 0.8 and near < 0.25 and other < 0.1, "of other things, too"
    assert shares == pytest.approx({"same": same, "near": near, "other": other}, abs=0.15), "as it was said"


def test_ramps_rise_with_the_stack() -> None:
    pictures = drawn(120)
    gate, _ = calibrate(pictures, error=0.02)
    for ends in (gate.about.low, gate.about.high):
        assert len(ends) == SIZES and list(ends) == sorted(ends)
    assert gate.about.low[-1] > gate.about.low[0]
    for low, high in zip(gate.about.low, gate.about.high, strict=True):
        assert high - low == pytest.approx(2 * HALF)
    others = measured(pictures)[2]
    for size, (low, high) in enumerate(zip(gate.about.low, gate.about.high, strict=True)):
        beyond = (others > (low + high) / 2).float().mean().item()
        assert beyond <= 0.02 / 2**size + 1.5 / len(others), "each of G edits takes its share of what is allowed"
    few, many = (opening(gate, drawn(120, seed=1000), size) for size in (1, 1024))
    assert many[2] < few[2] or few[2] == 0
    assert many[0] <= few[0]


def test_the_stricter_the_error_the_higher_the_ramps() -> None:
    loose, strict = (calibrate(drawn(60), error)[0].about.low for error in (0.5, 0.001))
    assert all(a <= b for a, b in zip(loose, strict, strict=True)) and loose[-1] <= strict[-1] and loose != strict


def test_the_gate_is_made_of_all_pictures() -> None:
    pictures = drawn()
    gate, _ = calibrate(pictures)
    mean, metric = learn_metric(pictures)
    assert torch.equal(gate.mean, mean) and torch.equal(gate.metric, metric)
    assert torch.allclose(gate.cohort, normalize((pictures.seen - mean) @ metric, dim=1), atol=1e-5)
    again, _ = calibrate(pictures)
    assert again.settings() == gate.settings() and torch.equal(again.metric, gate.metric)


def test_lines_are_drawn_on_things_that_the_metric_was_not_learned_from() -> None:
    """With more numbers than pictures a metric knows its own by heart, and would say that it knows any."""
    pictures = drawn(12)
    noise = replace(pictures, seen=draw(24, 200, seed=3), views=draw(0, 200))
    mean, metric = learn_metric(noise)
    z = normalize((noise.seen - mean) @ metric, dim=1)
    assert told_apart(z @ z.T, noise) > 0.9, "by heart"
    same, near, _ = measured(noise)
    assert (same.unsqueeze(1) > near).float().mean() < 0.75


@pytest.mark.parametrize("things", [2, 3])
def test_very_few_things_give_a_gate_that_opens_and_shuts(things: int) -> None:
    gate, shares = calibrate(drawn(things, kinds=1))
    assert all(tensor.isfinite().all() for tensor in gate.tensors().values())
    assert all(0 <= share <= 1 for share in shares.values())
    assert all(np.isfinite(gate.about.low)) and all(np.isfinite(gate.about.high))


def test_pictures_that_nothing_tells_apart_give_no_numbers_that_are_none() -> None:
    gate, shares = calibrate(replace(drawn(6, kinds=2), seen=torch.ones(12, SEEN)))
    assert all(tensor.isfinite().all() for tensor in gate.tensors().values())
    assert all(np.isfinite(gate.about.low)) and all(0 <= share <= 1 for share in shares.values())


def test_views_by_other_hands_are_among_what_is_usual() -> None:
    """They join the cohort; a fold never sees those of its own things."""
    plain = drawn(40)
    viewed = replace(plain, views=plain.seen[::2] + 0.01, viewed=plain.thing[::2])
    gate, _ = calibrate(viewed)
    assert len(gate.cohort) == len(plain.seen) + len(viewed.views)
    rest = viewed.of(torch.arange(10))
    assert rest.viewed.tolist() == list(range(10)) and len(rest.views) == 10
