"""One reading of prompts: where they end, and what has been read of them."""

import pytest
import torch
from unike_parts import draw

from unike.backbones.forward.context import Prefill

D = 32


def test_a_prefill_finds_the_prompts_end_also_of_beams() -> None:
    prefill, hidden = Prefill(torch.tensor([1, 3]), torch.tensor([2, 3])), draw(4, 5, D)
    assert torch.equal(prefill.at_prompt_last(hidden[:2]), torch.stack([hidden[0, 1], hidden[1, 3]]))
    at_p = torch.stack([hidden[0, 1], hidden[1, 1], hidden[2, 3], hidden[3, 3]])
    assert torch.equal(prefill.at_prompt_last(hidden), at_p)
    whole = torch.stack([*(x[:2].mean(dim=0) for x in hidden[:2]), *(x[1:4].mean(dim=0) for x in hidden[2:])])
    assert torch.allclose(prefill.over_prompt(hidden, 7), whole, atol=1e-6)
    with pytest.raises(ValueError, match="2 prompts are read, but the model runs on 3 rows"):
        prefill.at_prompt_last(hidden[:3])


def test_what_is_not_run_again_is_counted_by_its_sum() -> None:
    hidden, sums = draw(4, 5, D), draw(2, D, seed=1)  # of four and three tokens
    rest = Prefill(torch.tensor([1, 3]), torch.tensor([6, 7]), sums={7: sums})
    whole = [(sums[row // 2] + x[: 2 + 2 * (row // 2)].sum(dim=0)) / (6 + row // 2) for row, x in enumerate(hidden)]
    assert torch.allclose(rest.over_prompt(hidden, 7), torch.stack(whole), atol=1e-6)


def test_a_layer_is_read_once() -> None:
    """Whatever runs later: an answer's tokens are not read in place of the prompt's."""
    prefill, hidden = Prefill(torch.tensor([1, 3]), torch.tensor([2, 3])), draw(2, 5, D).requires_grad_()
    first = prefill.read(7, hidden)
    assert torch.equal(first.last, prefill.at_prompt_last(hidden))
    assert torch.equal(first.whole, prefill.over_prompt(hidden, 7))
    assert not first.last.requires_grad and not first.whole.requires_grad
    again, other = prefill.read(7, draw(2, 1, D, seed=1)), prefill.read(8, draw(2, 5, D, seed=2))
    assert again is first
    assert not torch.equal(other.last, first.last)
    assert set(prefill.readings) == {7, 8}


def test_notes_of_one_name_are_averaged() -> None:
    prefill = Prefill(torch.tensor([1, 3]), torch.tensor([2, 3]))
    for values in ([1.0, 2.0], [3.0, 6.0]):
        prefill.note("alpha", torch.tensor(values))
    prefill.note("gate", torch.tensor([0.5, 1.0]))
    assert {name: values.tolist() for name, values in prefill.noted().items()} == {"alpha": [2, 4], "gate": [0.5, 1]}
