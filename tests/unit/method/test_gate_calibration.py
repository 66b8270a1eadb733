"""Where the gate's lines are drawn: the metric against numpy, and what calibration tells apart."""

from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from unike_parts import draw

from unike.backbones.forward.context import SEEN
from unike.editors.unike.calibration import BY_HANDS, COHORT, FOLDS, HALF, SIZES, calibrate, cohort_of, measured
from unike.editors.unike.gate import Gate, Ramp
from unike.editors.unike.metric import WITHIN, Metric, learn_discriminant, learn_metric, within
from unike.editors.unike.pictures import Pictures

TOLD, KIND = 24, 8
"""Numbers that say what is shown as a whole, and how many of them say of what kind a thing is."""

STEPS = 30


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pictures, and which pairs of them the gate is drawn by."""

    pictures: Pictures
    same: list[tuple[int, int]]
    near: list[tuple[int, int]]

    def calibrate(self, error: float = 0.2) -> tuple[Gate, dict[str, float]]:
        return calibrate(self.pictures, self.same, self.near, error=error, steps=STEPS)

    def showing(self, seen: Tensor) -> "Drawn":
        return replace(self, pictures=replace(self.pictures, seen=seen))


def drawn(things: int = 60, seed: int = 0, kinds: int = 6) -> Drawn:
    """Two pictures of each thing, one after the other: things of a kind are alike in large directions, pictures of a
    thing in small ones, and by whose hand they are is heard loudest of all. Their parts say nothing."""
    kind = torch.arange(things) % kinds
    large, small = 4 * draw(kinds, KIND, seed=7)[kind], draw(things, TOLD - KIND - 2, seed=seed)
    thing = torch.arange(things).repeat_interleave(2)
    hand = 8 * draw(2 * things, 2, seed=seed + 1)
    noise = 0.25 * draw(2 * things, TOLD, seed=seed + 2)
    told = 5 + torch.cat([large[thing], small[thing], hand], dim=1) + noise
    seen = torch.cat([told, 0.1 * draw(2 * things, TOLD * (SEEN - 2) // 2, seed=seed + 3)], dim=1)
    first = [2 * i for i in range(things)]
    of_kind = [2 * ((i + kinds) % things) + 1 for i in range(things)]
    pictures = Pictures(seen, thing, kind[thing], torch.zeros_like(thing))
    return Drawn(pictures, [(i, i + 1) for i in first], list(zip(first, of_kind, strict=True)))


def told_apart(cosines: Tensor, drawn: Drawn) -> float:
    """How often a pair of one thing is more alike than a near one, ``cosines [n, n]``: 0.5 is chance."""
    same, near = (cosines[tuple(torch.tensor(pairs).T)] for pairs in (drawn.same, drawn.near))
    return (same.unsqueeze(1) > near).float().mean().item()


# ---------------------------------------------------------------------- the metric


def test_the_metric_tells_two_hands_of_a_thing_from_near_things() -> None:
    """Of things that it was not learned from, and better than what is seen itself does."""
    metric, other = learn_metric(drawn().pictures, STEPS), drawn(seed=1000)
    plain = normalize(other.pictures.seen - metric.mean, dim=1)
    learned = metric(other.pictures.seen)
    assert torch.allclose(learned.norm(dim=1), torch.ones(120))
    assert told_apart(learned @ learned.T, other) > 0.9
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


def test_behind_the_discriminant_things_vary_evenly_within() -> None:
    """But for what is shrunken: the large hand is brought down to the size of the rest."""
    pictures = drawn(200).pictures
    centred = (pictures.seen - pictures.seen.mean(dim=0))[:, :TOLD]
    discriminant = learn_discriminant(centred, pictures.thing)
    spread = within(centred @ discriminant, pictures.thing).diagonal()
    assert spread.max() < 10 * spread.min()
    assert discriminant.shape == (TOLD, TOLD) and discriminant.isfinite().all()
    assert learn_discriminant(centred, pictures.thing, width=5).shape == (TOLD, 5)


def test_a_metric_is_learned_about_the_mean_of_pictures_as_they_are() -> None:
    """What made-up hands show moves neither the mean nor the discriminant."""
    pictures = drawn().pictures
    views = replace(pictures, seen=pictures.seen + 3, hand=torch.ones_like(pictures.hand))
    both = Pictures(*(torch.cat(pair) for pair in zip(parts(pictures), parts(views), strict=True)))
    metric, joined = learn_metric(pictures, STEPS), learn_metric(both, STEPS)
    assert torch.allclose(metric.mean, pictures.seen.mean(dim=0), atol=1e-5)
    assert torch.equal(joined.mean, metric.mean) and torch.equal(joined.discriminant, metric.discriminant)
    assert not torch.equal(joined.contrast, metric.contrast)
    assert metric.width == joined.width == metric(pictures.seen).shape[1]


def parts(pictures: Pictures) -> list[Tensor]:
    return [getattr(pictures, field.name) for field in fields(Pictures)]


def test_a_direction_without_spread_or_fewer_pictures_than_numbers_do_no_harm() -> None:
    few = drawn(3, kinds=2).pictures
    still = few.seen.clone()
    still[:, TOLD - 2 : TOLD] = 1
    for seen in (few.seen, still, torch.ones_like(few.seen)):
        metric = learn_metric(replace(few, seen=seen), STEPS)
        assert all(getattr(metric, name).isfinite().all() for name in Metric.TENSORS)
        assert metric(seen).isfinite().all()


def test_a_cohort_is_spread_over_all_and_of_unit_length() -> None:
    def cohort(n: int, hand: int = 0) -> Tensor:
        thing = torch.arange(n)
        shown = Pictures(draw(n, SEEN), thing, thing, torch.full((n,), hand))
        return cohort_of(shown, Metric(torch.zeros(SEEN), draw(2, 2), draw(SEEN, 3)))

    some, many = cohort(7), cohort(3 * COHORT)
    assert some.shape == (7, 5) and len(many) == COHORT and len(cohort(3 * COHORT, hand=2)) == BY_HANDS
    assert torch.allclose(many.norm(dim=1), torch.ones(COHORT), atol=1e-5)


# ---------------------------------------------------------------------- calibration


def opening(gate: Gate, drawn: Drawn, n_edits: int) -> tuple[float, float, float]:
    """How often pairs of a thing, near ones and arbitrary ones pass the middle of a ramp."""
    pictures = drawn.pictures
    picture, usual = gate.pictured(pictures.seen, len(pictures.seen))
    beyond = picture @ picture.T - (usual + usual.T) / 2
    ramp: Ramp = gate.about.of(n_edits)
    passed = beyond > (ramp.low + ramp.high) / 2
    same, near = (passed[tuple(torch.tensor(pairs).T)].float().mean().item() for pairs in (drawn.same, drawn.near))
    others = pictures.thing.unsqueeze(1) != pictures.thing
    return same, near, passed[others].float().mean().item()


def test_near_things_are_let_in_less_often_than_the_same() -> None:
    gate, shares = drawn(120).calibrate()
    assert shares["same"] > 0.8 > 0.2 > shares["near"] and shares["other"] < 0.1
    same, near, other = opening(gate, drawn(120, seed=1000), 1)
    assert same > 0.8 and near < 0.25 and other < 0.1, "of other things, too"
    assert shares == pytest.approx({"same": same, "near": near, "other": other}, abs=0.15), "as it was said"


def test_ramps_rise_with_the_stack() -> None:
    pairs = drawn(120)
    gate, _ = pairs.calibrate(error=0.02)
    for ends in (gate.about.low, gate.about.high):
        assert len(ends) == SIZES and list(ends) == sorted(ends)
    assert gate.about.low[-1] > gate.about.low[0]
    for low, high in zip(gate.about.low, gate.about.high, strict=True):
        assert high - low == pytest.approx(2 * HALF)
    others = measured(pairs.pictures, pairs.same, pairs.near, STEPS)[2]
    for size, (low, high) in enumerate(zip(gate.about.low, gate.about.high, strict=True)):
        beyond = (others > (low + high) / 2).float().mean().item()
        assert beyond <= 0.02 / 2**size + 1.5 / len(others), "each of G edits takes its share of what is allowed"
    few, many = (opening(gate, drawn(120, seed=1000), size) for size in (1, 1024))
    assert many[2] < few[2] or few[2] == 0
    assert many[0] <= few[0]


def test_the_stricter_the_error_the_higher_the_ramps() -> None:
    loose, strict = (drawn(60).calibrate(error)[0].about.low for error in (0.5, 0.001))
    assert all(a <= b for a, b in zip(loose, strict, strict=True)) and loose[-1] <= strict[-1] and loose != strict


def test_the_gate_is_made_of_all_pictures() -> None:
    pairs = drawn()
    gate, _ = pairs.calibrate()
    metric, (again, _) = learn_metric(pairs.pictures, STEPS), pairs.calibrate()
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in gate.tensors().items())
    assert all(torch.equal(getattr(metric, name), gate.tensors()[name]) for name in Metric.TENSORS)
    assert torch.allclose(gate.cohort, metric(pairs.pictures.seen), atol=1e-5)
    assert again.settings() == gate.settings()


def test_lines_are_drawn_on_things_that_the_metric_was_not_learned_from() -> None:
    """With more numbers than pictures a metric knows its own by heart, and would say that it knows any."""
    noise = drawn(12).showing(draw(24, SEEN * 100, seed=3))
    z = learn_metric(noise.pictures, STEPS)(noise.pictures.seen)
    assert told_apart(z @ z.T, noise) > 0.9, "by heart"
    same, near, _ = measured(noise.pictures, noise.same, noise.near, STEPS)
    assert (same.unsqueeze(1) > near).float().mean() < 0.75


@pytest.mark.parametrize("things", [2, 3])
def test_very_few_things_give_a_gate_that_opens_and_shuts(things: int) -> None:
    gate, shares = drawn(things, kinds=1).calibrate()
    assert all(tensor.isfinite().all() for tensor in gate.tensors().values())
    assert all(0 <= share <= 1 for share in shares.values())
    assert all(np.isfinite(gate.about.low)) and all(np.isfinite(gate.about.high))


def test_pictures_that_nothing_tells_apart_give_no_numbers_that_are_none() -> None:
    still = drawn(6, kinds=2)
    gate, shares = still.showing(torch.ones_like(still.pictures.seen)).calibrate()
    assert all(tensor.isfinite().all() for tensor in gate.tensors().values())
    assert all(np.isfinite(gate.about.low)) and all(0 <= share <= 1 for share in shares.values())


def test_views_by_made_up_hands_are_among_what_is_usual() -> None:
    """They join the cohort; a fold never sees those of its own things; and no line is drawn by them."""
    plain = drawn(40)
    views = [part[::2] for part in parts(replace(plain.pictures, hand=torch.ones_like(plain.pictures.hand)))]
    joined = Pictures(*(torch.cat(pair) for pair in zip(parts(plain.pictures), views, strict=True)))
    gate, _ = replace(plain, pictures=joined).calibrate()
    assert len(gate.cohort) == 80 + 40
    rest = joined.of(torch.arange(10))
    assert rest.thing.bincount().tolist() == [3] * 10 and rest.hand.sum() == 10
    assert len(measured(joined, plain.same, plain.near, STEPS)[2]) == FOLDS * 16 * 14, "of a fold's eight things"


def test_near_things_are_strangers_both_where_a_fold_has_two() -> None:
    """What is in the cohort is nearest to itself, so that it would seem less like the edited thing than it is."""
    one = drawn(40)
    fold = one.pictures.thing % FOLDS
    both = [(int(rows[0]), int(rows[-1])) for rows in ((fold == number).nonzero() for number in range(FOLDS))]
    apart = [pair for pair in one.near if fold[pair[0]] != fold[pair[1]]]
    found, alone, rest = (measured(one.pictures, one.same, near, STEPS)[1] for near in ([*apart, *both], both, apart))
    assert len(apart) == len(rest) > 0 and torch.equal(found, alone), "and where there are none, all that there are"
