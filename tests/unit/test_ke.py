"""KE against the words of its paper, matrix by matrix, and its constraint against arithmetic."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tinies import tiny_backbone
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.data.queries import Query
from unike.editors.ke.conditioned_update import ConditionedMatrix, ConditionedUpdates, TextCondition
from unike.editors.ke.editor import KE, KENetworkSettings
from unike.editors.trained.config import TrainConfig
from unike.editors.trained.hypernetwork import matrices_of
from unike.editors.trained.meta_objective import KINDS
from unike.editors.trained.token_gradients import token_gradients

LAYERS = (-2, -1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["llava", "blip2-opt"])
def tiny(request: pytest.FixtureRequest) -> Backbone:
    return tiny_backbone(request.param)


@pytest.fixture
def network(tiny: Backbone) -> ConditionedUpdates:
    """With weights that matter: those of a new network make hardly any difference."""
    found = KE().build(tiny, KENetworkSettings(layers=LAYERS, max_scale=0.7))
    with torch.no_grad():
        for number, parameter in enumerate(found.parameters()):
            parameter.copy_(0.5 * draw(parameter.numel(), seed=number).reshape(parameter.shape))
    return found


def normed(linear: Any, x: Tensor) -> Tensor:
    """A linear map with weight normalisation: ``(g v / |v|) x + b``, row by row."""
    g, v = linear.parametrizations.weight.original0, linear.parametrizations.weight.original1
    return x @ (g * v / v.norm(dim=1, keepdim=True)).T + linear.bias


def lstm(x: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor) -> Tensor:
    """The last state of an LSTM that reads ``x [L, D]``, from its equations."""
    h = c = torch.zeros(w_h.shape[1])
    for token in x:
        i, f, g, o = (w_x @ token + b_x + w_h @ h + b_h).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return h


# ---------------------------------------------------------------------- the network


def test_the_update_is_the_papers(tiny: Backbone, network: ConditionedUpdates, facts: list[Query]) -> None:
    """Golden: ``max_scale * sigmoid(eta) * (G * A + B)`` with dense ``G, A, B``, each of A and B of rank one."""
    gradients = token_gradients(tiny, tiny.run_to_split(tiny.encode(facts), 2), LAYERS)
    embeddings, lengths = KE().condition(tiny, facts)
    found = network(gradients, embeddings, lengths)
    assert found.keys() == matrices_of(tiny, LAYERS).keys()
    for row in range(3):
        condition = network.condition(embeddings, lengths)[row : row + 1]
        for name, (n, m) in matrices_of(tiny, LAYERS).items():
            layer = network.conditioned[name.replace(".", "-")]
            raw = normed(layer.outer, torch.tanh(normed(layer.inner, condition)))[0]
            assert len(raw) == 2 * (m + n) + 1
            column_a, row_a, column_b, row_b, eta = raw.split([n, m, n, m, 1])
            dense_a = torch.outer(row_a.softmax(dim=0), column_a)
            dense_b = torch.outer(row_b.softmax(dim=0), column_b)
            gradient = gradients[name].gradients[row].T @ gradients[name].inputs[row]
            expected = 0.7 * torch.sigmoid(eta) * (gradient * dense_a + dense_b)
            reads, writes = found[name]
            assert torch.dist(writes[row].T @ reads[row], expected) <= 1e-4 * expected.norm()
            assert torch.linalg.matrix_rank(dense_a) == torch.linalg.matrix_rank(dense_b) == 1
            assert reads.shape[1] == gradients[name].inputs.shape[1] + 1, "rank T + 1"


def test_a_text_is_read_to_its_end_and_no_further() -> None:
    reader, texts = TextCondition(4), draw(2, 5, 4)
    lengths = torch.tensor([5, 3])
    together = reader(texts, lengths)
    assert together.shape == (2, 1024) and together.abs().max() < 1
    assert torch.allclose(together[1:], reader(texts[1:, :3], lengths[1:]), atol=1e-6)
    texts[1, 3:] = 9.0
    assert torch.equal(reader(texts, lengths), together)


def test_a_text_is_read_in_both_directions() -> None:
    """Golden: ``tanh(W [h; h'] + b)`` with the last states of an LSTM from the left and of one from the right."""
    reader, text = TextCondition(4), draw(5, 4)
    with torch.no_grad():
        for number, parameter in enumerate(reader.parameters()):
            parameter.copy_(0.1 * draw(parameter.numel(), seed=number).reshape(parameter.shape))
        there, back = reader.lstm.all_weights
        states = torch.cat([lstm(text, *there), lstm(text.flip(0), *back)])
        expected = torch.tanh(reader.linear.weight @ states + reader.linear.bias)
        assert expected.abs().max() > 0.5, "so large that it matters"
        assert torch.allclose(reader(text[None], torch.tensor([5]))[0], expected, atol=1e-5)


def test_the_start_is_seeded_and_leaves_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (ConditionedUpdates({"-1.a": (3, 5)}, 4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [each.condition.linear.weight for each in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_scale_has_a_limit() -> None:
    matrix = ConditionedMatrix(3, 5, max_scale=0.25)
    scale = matrix.vectors(100 * draw(50, 1024))[-1]
    assert scale.shape == (50, 1) and 0 <= scale.min() < scale.max() <= 0.25


# ---------------------------------------------------------------------- the condition


def test_the_text_names_the_old_answer_the_new_one_and_the_question(tiny: Backbone, facts: list[Query]) -> None:
    embeddings, lengths = KE().condition(tiny, facts)
    embed = tiny.model.get_input_embeddings()
    for row, fact in enumerate(facts):
        text = f"{tiny.generate([fact])[0]} >> {fact.target} || {fact.prompt}"
        ids = torch.tensor(tiny.tokenizer(text, add_special_tokens=False)["input_ids"])
        assert lengths[row] == len(ids)
        assert torch.equal(embeddings[row, : len(ids)], embed(ids))
        assert not embeddings[row, len(ids) :].any()


# ---------------------------------------------------------------------- training


def test_the_lagrangian() -> None:
    network = ConditionedUpdates({"-1.a": (3, 5)}, 4, margin=0.5)
    losses = {kind: torch.tensor([float(number), number + 2.0]) for number, kind in enumerate(KINDS)}
    total = KE().total(network, losses)
    assert total.item() == pytest.approx((1 + 2 + 3) / 3 + 1 * ((4 + 5) / 2 - 0.5))
    total.backward()
    assert network.multiplier.grad is not None and network.multiplier.grad.item() == pytest.approx(4.0)


@pytest.mark.parametrize(("divergence", "rises"), [(2.0, True), (0.0, False)])
def test_the_multiplier_rises_while_the_constraint_is_broken(divergence: float, rises: bool) -> None:
    network, settings = ConditionedUpdates({"-1.a": (3, 5)}, 4, margin=0.5), KENetworkSettings()
    editor, losses = KE(), {kind: torch.full((2,), divergence) for kind in KINDS}
    optimizer = editor.optimizer(network, settings)
    values = [1.0]
    for _ in range(30):
        optimizer.zero_grad()
        editor.total(network, losses).backward()
        optimizer.step()
        editor.stepped(network)
        values.append(network.multiplier.item())
    assert (values[1] > 1) is rises
    assert min(values) >= 0 and (rises or values[-1] == 0)


def test_learning_rates_warm_up_linearly() -> None:
    """As ``get_linear_schedule_with_warmup`` has it, from 0 at the first step on."""
    settings = KENetworkSettings(warmup=4)
    assert [KE().warmth(settings, step) for step in range(1, 8)] == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert KE().warmth(KENetworkSettings(warmup=0), 1) == 1
    assert KENetworkSettings().warmup / TrainConfig().steps == 1_000 / 200_000


def test_the_margin_shrinks_while_edits_succeed() -> None:
    settings = KENetworkSettings(margin=1e-3, margin_floor=7e-4)
    network = ConditionedUpdates({"-1.a": (3, 5)}, 4, margin=settings.margin)
    margins = []
    for success in (0.9, 0.95, 0.5, 1.0):
        KE().validated(network, settings, {"fact": success})
        margins.append(network.margin.item())
    assert margins == pytest.approx([1e-3, 8e-4, 8e-4, 7e-4])
    assert "margin" in network.state_dict(), "a run that goes on knows it"


# ---------------------------------------------------------------------- without a network


def test_an_untrained_editor_says_what_to_run(
    tiny: Backbone, facts: list[Query], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path))
    with pytest.raises(
        UnikeError, match=r"^ke has not been trained for 'tiny-.*; run: unike train --editor ke --model"
    ):
        KE().edit(tiny, facts[0])
