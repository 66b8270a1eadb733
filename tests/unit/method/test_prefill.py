"""One reading of prompts: where they end, what they say and what they show."""

import numpy as np
import pytest
import torch
from by_hand import parts_by_hand
from unike_parts import draw

from unike.backbones.forward.context import ACROSS, SEEN, Prefill, parts_of, seen_in

D = 32


def by_hand(embedded: torch.Tensor, shown: list[int]) -> np.ndarray:
    """Mean, spread and parts of some positions' embeddings; zero for none."""
    features = embedded[shown].double().numpy()
    if not shown:
        return np.zeros(SEEN * D)
    return np.concatenate([features.mean(axis=0), features.std(axis=0), *parts_by_hand(features)])


def marked(length: int, *rows: list[int]) -> torch.Tensor:
    found = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, positions in enumerate(rows):
        found[row, positions] = True
    return found


PLACES = [0, 1, 2], [4, 6], [], [5]
"""Of visual features: in different places, several and one, and none at all."""


def test_what_is_seen_are_mean_and_spread_of_visual_features() -> None:
    read, shown = 3 + draw(4, 7, D), marked(7, *PLACES)
    found = seen_in(read, shown)
    assert found.shape == (4, SEEN * D) and found.dtype == torch.float32
    for row, places in enumerate(PLACES):
        assert np.allclose(found[row].numpy(), by_hand(read[row], places), atol=1e-5)
    assert not found[2].any(), "nothing is shown"
    assert found[3, :D].any() and not found[3, D : 2 * D].any(), "one feature has no spread"


@pytest.mark.parametrize("n", [1, 5, 9, 10, 11, 16, 17, 32, 49, 576, 577, 1088])
def test_the_parts_of_a_picture_are_those_of_a_square_or_stretches(n: int) -> None:
    """A square may be followed by one more, which speaks of the whole."""
    features = draw(n, D)
    assert np.allclose(parts_of(features).numpy(), np.stack(parts_by_hand(features.double().numpy())), atol=1e-5)


def test_parts_say_where_things_lie() -> None:
    """Mean and spread are the same upside down, the parts are not."""
    features = draw(16, D)
    over = features.reshape(4, 4, D).flip(0).reshape(16, D)
    one, other = (seen_in(each.unsqueeze(0), torch.ones(1, 16).bool())[0] for each in (features, over))
    assert torch.allclose(one[: 2 * D], other[: 2 * D], atol=1e-5)
    turned = one[2 * D :].reshape(ACROSS, ACROSS, D).flip(0).flatten()
    assert torch.allclose(turned, other[2 * D :], atol=1e-5) and not torch.allclose(one, other)


def test_what_is_seen_does_not_depend_on_what_stands_elsewhere() -> None:
    """Words around a picture, padding on either side, tokens of an answer."""
    read, shown = draw(4, 7, D), marked(7, *PLACES)
    words = torch.where(shown.unsqueeze(-1), read, 100 * draw(4, 7, D, seed=1))
    assert torch.allclose(seen_in(words, shown), seen_in(read, shown), atol=1e-5)
    left = torch.cat([draw(4, 3, D, seed=2), read], dim=1), torch.cat([torch.zeros(4, 3).bool(), shown], dim=1)
    assert torch.allclose(seen_in(*left), seen_in(read, shown), atol=1e-5)
    longer = torch.cat([read, draw(4, 5, D, seed=3)], dim=1)
    assert torch.allclose(seen_in(longer, shown), seen_in(read, shown), atol=1e-5), "none are beyond"


def test_a_pass_shows_its_pictures_once_also_with_beams() -> None:
    read, shown = draw(2, 7, D), marked(7, [0, 1], [3])
    for beams in (1, 3):
        prefill = Prefill(torch.tensor([6, 6]), ((1,), (2,)), shown)
        assert prefill.pictures is None and not prefill.continues
        prefill.begin(read.repeat_interleave(beams, dim=0).requires_grad_())
        seen = prefill.pictures
        assert seen is not None and not seen.requires_grad
        assert torch.equal(seen, seen_in(read, shown))
        prefill.begin(draw(2 * beams, 1, D, seed=1))
        assert prefill.pictures is seen and prefill.continues, "an answer's tokens show nothing"


def test_a_pass_without_pictures_or_embeddings_shows_nothing() -> None:
    for shown, read in ((None, draw(2, 7, D)), (marked(7, [0], [1]), torch.ones(2, 7).long())):
        prefill = Prefill(torch.tensor([6, 6]), shown=shown)
        prefill.begin(read)
        assert prefill.pictures is None
    assert prefill.passes == [(2, 7)]


def test_a_prefill_finds_the_prompts_end_also_of_beams() -> None:
    prefill, hidden = Prefill(torch.tensor([1, 3])), draw(4, 5, D)
    assert torch.equal(prefill.at_prompt_last(hidden[:2]), torch.stack([hidden[0, 1], hidden[1, 3]]))
    at_p = torch.stack([hidden[0, 1], hidden[1, 1], hidden[2, 3], hidden[3, 3]])
    assert torch.equal(prefill.at_prompt_last(hidden), at_p)
    with pytest.raises(ValueError, match="2 prompts are read, but the model runs on 3 rows"):
        prefill.at_prompt_last(hidden[:3])


def test_notes_of_one_name_are_averaged() -> None:
    prefill = Prefill(torch.tensor([1, 3]))
    for values in ([1.0, 2.0], [3.0, 6.0]):
        prefill.note("alpha", torch.tensor(values))
    prefill.note("gate", torch.tensor([0.5, 1.0]))
    assert {name: values.tolist() for name, values in prefill.noted().items()} == {"alpha": [2, 4], "gate": [0.5, 1]}
