"""T-Patcher's neurons, losses and stop rule, against loops over the paper's words."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tinies import tiny_backbone
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import all_right
from unike.backbones.forward.hooks import Hooks
from unike.data.queries import Query
from unike.editors.common.anchors import Anchors
from unike.editors.common.optimise import optimise
from unike.editors.common.pairs import wrong_positions
from unike.editors.t_patcher import Best, Neurons, TPatcher, TPatcherConfig, TPatcherEdit, first_of
from unike.edits.group import Group

B, N, D, M = 2, 3, 6, 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def llava() -> Backbone:
    return tiny_backbone("llava")


@pytest.fixture
def neurons() -> Neurons:
    """Two edits, the second of which needs two neurons of three; no longer as they started."""
    alive = torch.tensor([[True, True, True], [True, True, False]])
    found = Neurons(draw(B, N, D) * alive.unsqueeze(-1), alive, draw(B, N, D, seed=1) * alive.unsqueeze(-1), 10.0)
    found.keys = found.keys + 0.1 * draw(B, N, D, seed=2) * alive.unsqueeze(-1)
    found.bias = 0.1 * draw(B, N, seed=3) * alive
    return found


# ---------------------------------------------------------------------- where neurons start


def test_a_neuron_starts_at_its_token_and_fires_there_with_one() -> None:
    own = draw(B, N, D)
    found = Neurons(own, torch.ones(B, N, dtype=torch.bool), draw(B, N, D, seed=1), 10.0)
    for row in range(B):
        for n in range(N):
            assert torch.allclose(found.keys[row, n], own[row, n] / (own[row, n] @ own[row, n]))
    assert torch.allclose(found.activations, torch.ones(B, N))
    assert torch.equal(found.patch().values, 10 * draw(B, N, D, seed=1))


def test_the_first_positions_of_a_mask() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0]]).bool()
    where, found = first_of(mask, 3)
    assert where.tolist() == [[1, 3, 4], [5, 0, 0], [0, 4, 0]]
    assert found.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert first_of(mask[:, :2], 3)[0].shape == (3, 3), "as wide as asked for, however short the rows are"


def test_one_neuron_for_each_wrong_token_up_to_five(llava: Backbone, facts: list[Query]) -> None:
    state = llava.run_to_split(llava.encode(facts), -1)
    wrong = wrong_positions(llava, state).sum(dim=1)
    for cap in (2, 8):
        edits = TPatcher(steps=0, max_neurons=cap).edit(llava, facts)
        alive = (edits.tensors["-1.keys"] != 0).any(dim=-1)
        assert alive.shape == (3, cap)
        assert alive.sum(dim=1).tolist() == wrong.clamp(max=cap).tolist()
        assert not edits.tensors["-1.values"][~alive].any()
    assert wrong.min() > 1 and wrong.max() < 8
    assert TPatcherConfig().max_neurons == 5


def test_what_an_edit_does_not_need_stays_zero(llava: Backbone, facts: list[Query]) -> None:
    edits = TPatcher(steps=3, max_neurons=8, anchors=Anchors(facts)).edit(llava, facts)
    start = TPatcher(steps=0, max_neurons=8).edit(llava, facts)
    alive = (start.tensors["-1.keys"] != 0).any(dim=-1)
    for name, tensor in edits.tensors.items():
        assert not tensor[~alive].any(), name
        moved = (tensor != start.tensors[name])[alive]
        assert (moved if moved.ndim == 1 else moved.any(dim=-1)).all(), name


# ---------------------------------------------------------------------- losses


@pytest.mark.parametrize("top", [4, 1000])
def test_the_losses_are_those_of_the_paper(neurons: Neurons, top: int) -> None:
    memory, config = draw(M, D, seed=4), TPatcherConfig(top=top)
    for row, count in enumerate((3, 2)):
        activation, more_than_own, more_than_none = [], [], []
        for n in range(count):
            key, bias = neurons.keys[row, n], neurons.bias[row, n].item()
            a = (key @ neurons.own[row, n]).item() + bias
            activation.append(math.exp(-a))
            for state in memory:
                a_mem = (key @ state).item() + bias
                more_than_own.append(math.exp(a_mem - a + 3))
                more_than_none.append(math.exp(a_mem + 3))
        largest = [sorted(terms, reverse=True)[:top] for terms in (more_than_own, more_than_none)]
        expected = sum(sum(terms) / len(terms) for terms in largest)
        assert neurons.memory_loss(memory, config)[row].item() == pytest.approx(expected, rel=1e-5)
        assert neurons.activation_loss()[row].item() == pytest.approx(sum(activation) / count, rel=1e-5)


def test_of_many_neurons_those_count_that_fire_least() -> None:
    own = draw(2, 8, D, seed=5)
    alive = torch.tensor([[True] * 8, [True] * 3 + [False] * 5])
    neurons = Neurons(own, alive, draw(2, 8, D, seed=6), 1.0)
    neurons.bias = draw(2, 8, seed=7)
    terms = (-neurons.activations).exp()
    assert neurons.activation_loss()[0].item() == pytest.approx(sum(sorted(terms[0].tolist())[-5:]) / 5)
    assert neurons.activation_loss()[1].item() == pytest.approx(sum(terms[1, :3].tolist()) / 3)


def test_a_memory_is_left_alone_and_the_neuron_still_fires(llava: Backbone, facts: list[Query]) -> None:
    """With the memory loss fewer of its states reach a neuron, for which the answer is not given up."""
    anchors, reached = Anchors([Query("Is it near?"), Query("1 + 1?"), Query("Who wrote the book?")]), []
    memory = anchors.ffn_inputs(llava, [-1])[-1]
    batch = llava.encode(facts)
    for weight in (0.0, 10.0):
        settings = {"lr": 3e-2, "amplify": 2.0, "max_neurons": 8, "memory_weight": weight}
        edits = TPatcher(anchors=anchors, **settings).edit(llava, facts)
        a = memory @ edits.tensors["-1.keys"].transpose(1, 2) + edits.tensors["-1.bias"].unsqueeze(1)
        reached.append((a > 0).float().mean().item())
    assert reached[1] < 0.1 < 0.3 < reached[0]
    with edits.attached(llava):
        assert all_right(llava.forward(batch), batch.labels).any()


# ---------------------------------------------------------------------- when to stop


def test_the_best_right_parameters_are_kept_row_by_row() -> None:
    parameter = torch.zeros(3, 1)
    best = Best([parameter], patience=2, plateau=100)
    looks = [  # right, held-out loss of each of three edits
        ([False, True, False], [1.0, 5.0, 1.0]),
        ([True, True, False], [3.0, 4.0, 1.0]),
        ([True, True, False], [2.0, 6.0, 1.0]),
        ([False, True, False], [1.0, 4.0, 1.0]),
        ([True, True, False], [9.0, 3.0, 1.0]),
        ([True, True, False], [1.0, 2.0, 1.0]),
    ]
    for number, (right, loss) in enumerate(looks):
        parameter.fill_(number)
        best.look(torch.tensor(right), torch.tensor(loss), torch.ones(3))
        assert not best.is_over(), "the third is never right"
    best.restore()
    assert parameter[:, 0].tolist() == [2, 1, 5], "later gains come too late; the third stays as it is"


def test_a_wrong_edit_is_given_up_on_a_plateau() -> None:
    """Neither one that is right nor one whose loss still falls, by a twentieth at least; and for good."""
    parameter = torch.zeros(4, 1)
    best = Best([parameter], patience=10, plateau=3)
    for number in range(8):
        parameter.fill_(number)
        right = [False, number == 1, False, number == 7]
        falling, slowly = 0.9**number, 0.99**number
        best.look(torch.tensor(right), torch.ones(4), torch.tensor([1.0, 1.0, falling, slowly]))
    assert not best.is_over(), "the third goes on"
    best.restore()
    assert parameter[:, 0].tolist() == [3, 1, 7, 3], "the fourth is right too late"


def test_what_cannot_be_learned_does_not_take_all_steps(llava: Backbone, facts: list[Query]) -> None:
    """Values of nothing write nothing. What is kept is what there was when it was given up."""
    settings = {"amplify": 0.0, "memory_weight": 0.0, "plateau": 7}
    taken: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        history = optimise(*args, **kwargs)
        taken.append(len(history))
        return history

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unike.editors.t_patcher.optimise", counted)
        given_up = TPatcher(**settings).edit(llava, facts[1])
    assert 7 < taken[0] < 100 and TPatcherConfig().steps == 2000
    longer = TPatcher(**settings | {"plateau": 2000}, steps=taken[0] - 1).edit(llava, facts[1])
    assert all(torch.equal(given_up.tensors[name], tensor) for name, tensor in longer.tensors.items())


def test_an_edit_stops_when_it_is_right(llava: Backbone, facts: list[Query]) -> None:
    """More steps than it needs change nothing; fewer leave it wrong."""
    settings = {"lr": 5e-2, "amplify": 2.0, "max_neurons": 8, "anchors": Anchors([Query("1 + 1?")])}
    settings |= {"memory_weight": 1e-3, "patience": 3}
    long, longer = (TPatcher(steps=steps, **settings).edit(llava, facts[1]) for steps in (150, 300))
    assert all(torch.equal(long.tensors[name], tensor) for name, tensor in longer.tensors.items())
    batch = llava.encode(facts[1:2])
    for steps, right in ((150, True), (2, False)):
        with TPatcher(steps=steps, **settings).edit(llava, facts[1]).attached(llava):
            assert all_right(llava.forward(batch), batch.labels).item() is right


def test_a_stack_is_one_patch_a_layer(llava: Backbone, facts: list[Query]) -> None:
    edits = [TPatcher(steps=2, max_neurons=2).edit(llava, fact) for fact in facts]
    with Hooks() as hooks:
        TPatcherEdit.install_group(Group(llava, edits), hooks, llava.encode(facts[:1]).prefill())
        assert len(hooks) == 2, "one that reads what the network is given, and one that adds to what it writes"


def test_all_right_asks_for_every_token(llava: Backbone, pictures: list[Path]) -> None:
    labels = torch.tensor([[-100, -100, 1, 2], [-100, 3, 4, -100]])
    logits = torch.full((2, 4, 6), 0.0)
    for row, position, token in [(0, 1, 1), (0, 2, 2), (1, 0, 3), (1, 1, 5)]:
        logits[row, position, token] = 1.0
    assert all_right(logits, labels).tolist() == [True, False]
    logits[1, 1, 4] = 2.0
    assert all_right(logits, labels).tolist() == [True, True]
