"""The gate: its ramps and likenesses against numpy loops, and how edits compete for an input."""

import json

import numpy as np
import pytest
import ramps
import torch
from by_hand import Prompt, opened, picture_of
from torch import Tensor
from torch.nn.functional import normalize
from unike_parts import CLOSED, FEATURES, OPEN, SHOWN, WIDTH, draw, some_gate, some_reading

from unike.backbones.forward.context import seen_in
from unike.editors.unike.gate import Gate, Ramp, RisingRamp, compete
from unike.editors.unike.likeness import COMMON, KEPT, NEAREST, Reading, alike, named_alike, usual

# ---------------------------------------------------------------------- ramps


def test_a_ramp_is_a_clamped_line() -> None:
    values = [-9.0, -0.2, -0.1, 0.0, 0.1, 0.3, 0.7, 9.0]
    expected = [0, 0, 0.2, 0.4, 0.6, 1, 1, 1]
    assert Ramp(-0.2, 0.3)(torch.tensor(values)).tolist() == pytest.approx(expected, abs=1e-6)
    for low, high in [(0.5, 0.5), (0.6, 0.5), (float("nan"), 1.0)]:
        with pytest.raises(ValueError, match=f"low={low} must be below high={high}"):
            Ramp(low, high)


def test_a_ramp_rises_with_the_stack() -> None:
    rising = RisingRamp(low=(0.1, 0.2, 0.5), high=(0.3, 0.4, 0.6))
    expected = {1: (0.1, 0.3), 2: (0.2, 0.4), 4: (0.5, 0.6), 5: (0.5, 0.6), 1000: (0.5, 0.6)}
    expected[3] = (0.2 + 0.3 * np.log2(1.5), 0.4 + 0.2 * np.log2(1.5))
    assert {n: (rising.of(n).low, rising.of(n).high) for n in expected} == {
        n: pytest.approx(ends) for n, ends in expected.items()
    }


# ---------------------------------------------------------------------- openings


def some_keys(*shape: int, seed: int, bare: int = 1) -> Reading:
    """Of edits, of which the last ``bare`` of each row have no picture."""
    keys = some_reading(*shape, seed=seed)
    pictured = torch.arange(shape[-1]).unsqueeze(-1) < shape[-1] - bare
    return keys._replace(picture=keys.picture * pictured, usual=keys.usual * pictured)


def row_of(read: Reading, *at: int) -> Prompt:
    return Prompt(*(part[at].double().numpy().squeeze() for part in read))


def edits_of(keys: Reading, row: int) -> list[dict[str, Tensor]]:
    return [dict(zip(KEPT, (part[row, edit] for part in keys), strict=True)) for edit in range(keys.asked.shape[1])]


@pytest.mark.parametrize("rivalry", [None, 0.4, 1.5])
@pytest.mark.usefixtures("wide_words")
def test_openings_are_those_of_the_definition(rivalry: float | None) -> None:
    """Of edits with and without a picture, for inputs with and without one, and with and without names."""
    gate, keys, read = some_gate(), some_keys(6, 3, seed=3), some_reading(6, seed=30)
    read.picture[1], read.usual[1], read.rare[2] = 0, 0, 0
    found = gate.openings(keys, read, rivalry)
    expected = [opened(gate, edits_of(keys, row), row_of(read, row), rivalry) for row in range(6)]
    for part, of_rows in zip(found, np.array(expected).transpose(2, 0, 1), strict=True):
        assert torch.allclose(part, torch.tensor(of_rows).float(), atol=1e-5)
    assert 0 < found.gate.max() < 1 and len(set(found.gate.flatten().tolist())) > 6
    assert (found.gate <= found.fact + 1e-6).all()


def test_its_own_input_opens_an_edit() -> None:
    """Of a picture that is no more usual than it may be."""
    gate, read = some_gate(), some_reading(5, seed=3)
    own = gate.openings(Reading(*(part.unsqueeze(1) for part in read)), read)
    assert all(torch.allclose(each, torch.ones(5, 1)) for each in own)


@pytest.mark.usefixtures("wide_words")
def test_what_is_asked_and_what_about_have_to_agree() -> None:
    keys, read = some_keys(5, 2, seed=3, bare=0), some_reading(5, seed=30)
    assert (some_gate(about=OPEN).openings(keys, read).gate > 0).all()
    assert not some_gate(about=CLOSED).openings(keys, read).gate.any()
    with ramps.words(ASKED=Ramp(8.0, 9.0)):
        found = some_gate(about=OPEN).openings(keys, read)
    assert not found.gate.any() and not found.question.any() and (found.fact == 1).all()


def test_an_edit_with_a_picture_is_shut_for_an_input_without_one() -> None:
    """Whatever it says, with ramps of any gate that calibration may draw."""
    gate, keys = some_gate(about=RisingRamp((-0.99,), (-0.9,))), some_keys(4, 2, seed=3)
    blind = Reading(*(part[:, 0] for part in keys))
    blind = blind._replace(picture=torch.zeros_like(blind.picture), usual=torch.zeros_like(blind.usual))
    found = gate.openings(keys, blind)
    assert not found.fact[:, 0].any() and not found.gate[:, 0].any()
    assert (found.question[:, 0] == 1).all(), "although it asks the same"


def test_an_edit_without_a_picture_does_not_look_at_pictures() -> None:
    gate, keys, read = some_gate(), some_keys(4, 2, seed=3, bare=2), some_reading(4, seed=30)
    blind = read._replace(picture=torch.zeros_like(read.picture), usual=torch.zeros_like(read.usual))
    for found, same in zip(gate.openings(keys, read), gate.openings(keys, blind), strict=True):
        assert torch.equal(found, same)


@pytest.mark.usefixtures("wide_words")
def test_in_a_stack_it_takes_more_to_be_about_an_edit() -> None:
    """For what is told of it, too, not for its own question alone; without a picture names say it as before."""
    gate, keys, read = some_gate(), some_keys(4, 2, seed=3), some_reading(4, seed=30)
    together = gate.openings(keys, read)
    pictured, named = (gate.openings(Reading(*(part[:, [edit]] for part in keys)), read) for edit in (0, 1))
    assert (together.fact[:, 0] <= pictured.fact[:, 0]).all() and (together.fact[:, 0] < pictured.fact[:, 0]).any()
    assert torch.allclose(together.fact[:, 1], named.fact[:, 0], atol=1e-6)
    assert torch.allclose(together.gate, together.fact * together.question)


def test_a_picture_is_seen_through_the_metric() -> None:
    gate, shown = some_gate(), 2 + draw(3, 9, FEATURES, seed=5)
    seen = torch.cat([seen_in(shown, torch.ones(3, 9).bool()), torch.zeros(1, SHOWN)])
    picture, usual = gate.pictured(seen, 4)
    for row in range(3):
        by_hand, near = picture_of(gate, shown[row].double().numpy())
        assert np.allclose(picture[row].numpy(), by_hand, atol=1e-5)
        assert usual[row].item() == pytest.approx(near, abs=1e-5)
    for nothing in (*(part[3] for part in (picture, usual)), *gate.pictured(None, 2)):
        assert not nothing.any(), "there is no picture"
    assert [part.shape for part in gate.pictured(None, 2)] == [(2, WIDTH), (2, 1)]


def test_a_small_cohort_says_what_is_usual_too() -> None:
    gate, seen = some_gate(cohort=some_gate().cohort[:2]), draw(3, SHOWN)
    picture, found = gate.pictured(seen, 3)
    mean = (picture @ gate.cohort.T).mean(dim=1)
    assert torch.allclose(found[:, 0], mean + mean.clamp(min=0), atol=1e-6), "at most as much again, and never less"


def test_what_is_like_all_a_little_is_more_usual_than_its_nearest_say() -> None:
    cohort, near = torch.eye(100), 10
    picture = {share: normalize(torch.tensor([[1.0] * near + [share] * 90]), dim=1) for share in (0.0, 0.02, 0.05)}
    nearest = {share: each[0, :near].mean().item() for share, each in picture.items()}
    mean = {share: each.mean().item() for share, each in picture.items()}
    assert mean[0.0] < mean[0.02] < mean[0.05] and near == NEAREST
    for share in (0.0, 0.02):
        assert usual(picture[share], cohort).item() == pytest.approx(nearest[share] + COMMON * mean[share], abs=1e-6)
    assert COMMON * mean[0.05] > nearest[0.05]
    assert usual(picture[0.05], cohort).item() == pytest.approx(2 * nearest[0.05], abs=1e-6), "at most as much again"


# ---------------------------------------------------------------------- rivals


def test_edits_compete_for_an_input() -> None:
    found = compete(torch.tensor([[0.6, 0.55, 0.6, 0.5, -0.3], [0.1, 0.1, 0.0, 0.02, 0.09]]), 0.1)
    assert torch.allclose(found, torch.tensor([[1, 0.5, 1, 0, 0], [1, 1, 0, 0.2, 0.9]]), atol=1e-5)
    assert torch.equal(compete(torch.tensor([[0.2], [-0.7]]), 0.1), torch.ones(2, 1)), "one alone has no rivals"


def test_the_nearest_edit_is_the_one_whose_question_and_picture_are_most_alike() -> None:
    """Nearer in both together: here one asks the same, and the other is about the same."""
    gate, read = some_gate(about=OPEN), some_reading(1, seed=30)
    keys = some_keys(1, 3, seed=3, bare=0)
    keys.asked[0, 0], keys.picture[0, 1], keys.usual[0, 1] = read.asked[0], read.picture[0], read.usual[0]
    keys.asked[0, 2], keys.picture[0, 2], keys.usual[0, 2] = read.asked[0], read.picture[0], read.usual[0]
    near = (keys.asked @ read.asked[0] + alike(keys, read))[0]
    assert near.argmax() == 2
    competing = gate.openings(keys, read, rivalry=0.9)
    expected = [max(1 - (max(near.tolist()) - each) / 0.9, 0) for each in near.tolist()]
    assert competing.fact[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert expected[2] == 1 and min(expected) < 1
    alone = gate.openings(keys, read)
    assert torch.equal(alone.fact, torch.ones(1, 3)), "without rivalry each acts by itself"


def test_pictures_are_alike_beyond_what_is_usual_for_both() -> None:
    keys, read = some_keys(2, 2, seed=3, bare=0), some_reading(2, seed=30)
    cosines = torch.einsum("rgp,rp->rg", keys.picture, read.picture)
    expected = cosines - (keys.usual[..., 0] + read.usual) / 2
    assert torch.allclose(alike(keys, read), expected, atol=1e-6)
    keys.picture[0, 1], read.picture[1] = 0, 0
    found = alike(keys, read)
    assert found[0, 0].item() == pytest.approx(expected[0, 0].item(), abs=1e-6)
    assert found[0, 1] == found[1, 0] == found[1, 1] == -1, "a picture and none are apart"


def test_who_is_named_is_the_lesser_of_both_ways() -> None:
    keys, read = some_reading(2, 3, seed=3), some_reading(2, seed=30)
    read.rare[1] = 0
    said = torch.einsum("rgn,rn->rg", keys.rare, read.said)
    known = torch.einsum("rgn,rn->rg", keys.said, read.rare)
    found = named_alike(keys, read)
    assert torch.allclose(found[0], torch.minimum(said, known)[0], atol=1e-6)
    assert torch.allclose(found[1], said[1], atol=1e-6), "who names nobody may mean anybody"


# ---------------------------------------------------------------------- edits that only some inputs see


PRESENT = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]]).bool()


@pytest.mark.parametrize("rivalry", [None, 0.4, 2.5])
@pytest.mark.usefixtures("wide_words")
def test_an_input_is_compared_with_the_edits_that_are_there_for_it(rivalry: float | None) -> None:
    """As if it were asked alone, with those alone: their number and their rivalry."""
    gate = some_gate(about=RisingRamp(low=(-0.9, -0.7, -0.5), high=(0.3, 0.6, 0.9)))
    whole, read = some_keys(*PRESENT.shape, seed=3), some_reading(len(PRESENT), seed=30)
    keys = Reading(*(part * PRESENT.unsqueeze(-1) for part in whole))  # what is not there is zeros
    found = gate.openings(keys, read, rivalry, PRESENT)
    for row, there in enumerate(PRESENT):
        assert not any(part[row, ~there].any() for part in found), "nothing is about an edit that is not there"
        if there.any():
            one = Reading(*(part[row] for part in read))
            alone = gate.openings(Reading(*(part[row, there] for part in whole)), one, rivalry)
            for part, expected in zip(found, alone, strict=True):
                assert torch.allclose(part[row, there], expected, atol=1e-6)
    assert all(part.isfinite().all() for part in found)
    everywhere = gate.openings(whole, read, rivalry, torch.ones_like(PRESENT))
    for part, expected in zip(everywhere, gate.openings(whole, read, rivalry), strict=True):
        assert torch.allclose(part, expected, atol=1e-6), "all are there: as if nothing had been said"
    assert ((found.gate > 0) & (found.gate < 1)).any()


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
    assert list(gate.tensors()) == ["mean", "discriminant", "contrast", "cohort"]
