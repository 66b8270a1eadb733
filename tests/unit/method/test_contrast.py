"""The map that tells two things by one hand from one thing by two."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize
from unike_parts import draw

from unike.backbones.forward.context import SEEN
from unike.editors.unike.contrast import BATCH, TAU, WIDTH, Batches, groups, inputs, learn_contrast, loss_of
from unike.editors.unike.pictures import Pictures

D = 8
THINGS, HANDS = 40, 6


def by_hands(seed: int = 0, hands: int = HANDS, first: int = 1) -> Pictures:
    """Each thing by each hand: a hand's look is the loudest, there are few ways to look; a thing shows in its parts."""
    thing = torch.arange(THINGS).repeat(hands)
    hand = torch.arange(hands).repeat_interleave(THINGS)
    own, look = draw(THINGS, SEEN * D, seed=seed), (draw(100, 3, seed=98) @ draw(3, SEEN * D, seed=99))[first + hand]
    own[:, : 2 * D] = 0
    seen = own[thing] + 3 * look + 0.3 * draw(len(thing), SEEN * D, seed=seed + 1)
    return Pictures(seen, thing, thing % 2, hand)


def told(pictures: Pictures, contrast: torch.Tensor, mean: torch.Tensor) -> float:
    """How often another hand's picture of a thing is nearer than other things by the first hand, on average."""
    z = normalize((pictures.seen - mean) @ contrast, dim=1)
    one, other = z[pictures.hand == 0], z[pictures.hand == 1]
    near = (one @ one.T)[~torch.eye(THINGS, dtype=torch.bool)].reshape(THINGS, -1)
    return ((one * other).sum(dim=1, keepdim=True) > near).float().mean().item()


def test_another_hand_is_told_from_other_things_by_the_same() -> None:
    """Of things and by hands that nothing was learned from."""
    pictures, strange = by_hands(), by_hands(seed=50, hands=2, first=50)
    mean = pictures.seen[pictures.as_they_are].mean(dim=0)
    discriminant = draw(2 * D, 4, seed=3)
    untaught, taught = (learn_contrast(pictures, mean, discriminant, steps) for steps in (0, 150))
    assert taught.shape == (SEEN * D, WIDTH)
    assert told(strange, taught, mean) > 0.95 > told(strange, untaught, mean) + 0.05
    again = learn_contrast(pictures, mean, discriminant, 150)
    assert torch.equal(taught, again), "nothing is left to chance"


def test_the_loss_is_infonce() -> None:
    read, weight = draw(2, 5, 6), draw(6, 3, seed=1)
    z = [[row / row.norm() for row in side @ weight] for side in read]
    expected = 0.0
    for i in range(5):
        right = math.exp(float(z[0][i] @ z[1][i]) / TAU)
        wrong = sum(math.exp(float(z[0][i] @ side[j]) / TAU) for side in z for j in range(5) if j != i)
        expected -= math.log(right / (right + wrong)) / 5
    assert loss_of(read, weight, dropped=0).item() == pytest.approx(expected, rel=1e-4)
    assert loss_of(read, weight).item() != pytest.approx(expected, rel=1e-4), "some of it is dropped"


def test_batches_share_a_look_and_show_a_thing_once() -> None:
    pictures = by_hands()
    batches = Batches(pictures, pictures.seen.mean(dim=0), torch.Generator().manual_seed(0))
    for _ in range(20):
        shown, plain = batches.by_a_hand(), batches.as_they_are()
        for batch in (shown, plain):
            one, other = batch.T
            assert 1 < len(one) <= BATCH and len(pictures.thing[one].unique()) == len(one)
            assert torch.equal(pictures.thing[one], pictures.thing[other]) and (one != other).all()
        assert len(pictures.hand[shown[:, 0]].unique()) == len(pictures.kind[shown[:, 0]].unique()) == 1
        assert pictures.hand[shown[0, 0]] > 0 and (pictures.hand[plain[:, 0]] == 0).all()


def test_a_thing_seen_once_is_not_learned_from() -> None:
    pictures = by_hands(hands=1)
    batches = Batches(pictures, pictures.seen.mean(dim=0), torch.Generator())
    assert not len(batches.by_a_hand()) and not len(batches.as_they_are())
    contrast = learn_contrast(pictures, pictures.seen.mean(dim=0), draw(2 * D, 4), 3)
    assert contrast.isfinite().all()
    alone = replace(pictures, hand=torch.ones_like(pictures.hand))
    assert not len(Batches(alone, alone.seen.mean(dim=0), torch.Generator()).by_a_hand())


def test_what_it_is_learned_behind_is_of_one_size() -> None:
    """What the discriminant tells by its spread, what the parts tell whitened, but for what is shrunken."""
    seen = draw(500, SEEN * D) * torch.logspace(-2, 2, SEEN * D)
    centred = seen - seen.mean(dim=0)
    read = centred @ inputs(centred, draw(2 * D, 4, seed=3))
    assert read.shape == (500, 4 + (SEEN - 2) * D)
    assert abs(read[:, :4].std() - 1) < 0.1 and read[:, 4:].std(dim=0).max() < 1.1
    apart = read[:, 4:].T @ read[:, 4:] / 500
    assert (apart - apart.diag().diag()).abs().max() < 0.05, "and apart from one another"


def test_groups_are_rows_of_the_same_labels() -> None:
    labels = torch.tensor([[1, 0], [2, 0], [1, 0], [1, 1]])
    assert [rows.tolist() for rows in groups(labels)] == [[0, 2], [3], [1]]
    assert groups(labels[:0]) == []
