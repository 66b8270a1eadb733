"""MEND against autograd, a slow literal version of its equations, and dense weights."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tinies import tiny_backbone
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import token_nll
from unike.backbones.forward.hooks import Hooks
from unike.core.errors import UnikeError
from unike.core.folders import replace_folder
from unike.data.queries import Query
from unike.editors.common.low_rank import install_delta, install_low_rank
from unike.editors.mend.editor import MEND, MENDNetworkSettings
from unike.editors.mend.gradient_transform import GradientTransforms, ResidualBlock, RunningStatistics
from unike.editors.trained.artifact import Trained, place
from unike.editors.trained.hypernetwork import matrices_of
from unike.editors.trained.token_gradients import TokenGradients, token_gradients
from unike.edits.stack import attached

LAYERS = (-3, -1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["llava", "blip2-opt"])
def tiny(request: pytest.FixtureRequest) -> Backbone:
    """A gated and an ungated feed-forward network."""
    return tiny_backbone(request.param)


@pytest.fixture
def at_own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("UNIKE_HOME", str(tmp_path))
    yield tmp_path


# ---------------------------------------------------------------------- factors


def test_factors_act_like_the_matrix_they_stand_for() -> None:
    linear = nn.Linear(5, 7).requires_grad_(False)
    reads, writes, x = draw(2, 3, 5), draw(2, 3, 7, seed=1), draw(4, 6, 5, seed=2)
    for tensor in (x, x.reshape(-1, 5)):
        found = []
        for install, parts in ((install_low_rank, (reads, writes)), (install_delta, (writes.transpose(1, 2) @ reads,))):
            with Hooks() as hooks:
                install(linear, *parts, hooks)  # type: ignore[operator]
                found.append(linear(tensor))
        assert torch.allclose(*found, atol=1e-5)
        assert not torch.allclose(found[0], linear(tensor), atol=1e-1)


def test_token_gradients_are_the_gradient_of_autograd(tiny: Backbone, facts: list[Query]) -> None:
    state = tiny.run_to_split(tiny.encode(facts), 1)
    found = token_gradients(tiny, state, LAYERS)
    assert found.keys() == matrices_of(tiny, LAYERS).keys()
    for row, fact in enumerate(facts):
        batch = tiny.encode([fact])
        weights = [linear.weight for layer in LAYERS for linear in tiny.ffn(layer).matrices.values()]
        for weight in weights:
            weight.requires_grad_(True)
        loss = token_nll(tiny.forward(batch), batch.labels).sum()
        expected = torch.autograd.grad(loss, weights)
        for weight in weights:
            weight.requires_grad_(False)
        for each, gradient in zip(found.values(), expected, strict=True):
            product = each.gradients[row].T @ each.inputs[row]
            assert torch.dist(product, gradient) <= 1e-3 * gradient.norm()
            assert gradient.norm() > 1e-4


def test_tokens_without_a_gradient_are_left_out(tiny: Backbone, facts: list[Query]) -> None:
    """In the last layer only the positions that predict an answer token have one."""
    state = tiny.run_to_split(tiny.encode(facts), 1)
    lengths = (state.labels != -100).sum(dim=1)
    for name, each in token_gradients(tiny, state, LAYERS).items():
        assert torch.equal(each.mask, each.mask.sort(dim=1, descending=True, stable=True).values), "zeros at the end"
        assert not each.inputs[~each.mask].any() and not each.gradients[~each.mask].any()
        assert (each.gradients[each.mask] != 0).any(dim=-1).all()
        if name.startswith("-1."):
            assert torch.equal(each.mask.sum(dim=1), lengths)
            assert each.inputs.shape[1] == lengths.max()
        else:
            assert (each.mask.sum(dim=1) > lengths).all()


# ---------------------------------------------------------------------- the network


def test_running_statistics_are_those_of_all_rows() -> None:
    statistics, rows = RunningStatistics(4), 3 + 2 * draw(9, 4)
    rows[:, 3] = 5.0
    assert torch.equal(statistics(rows), rows), "nothing was seen"
    for part in rows.split([1, 5, 3]):
        statistics.update(part)
    expected = (rows - rows.mean(dim=0)) / rows.std(dim=0)
    assert torch.allclose(statistics(rows)[:, :3], expected[:, :3], atol=1e-5)
    assert torch.allclose(statistics(rows + 1)[:, 3], torch.ones(9)), "what never varied is not scaled"


def test_a_block_is_equation_3() -> None:
    block = ResidualBlock(4, 2, 3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for number, parameter in enumerate(block.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=number))
    z = draw(5, 4, seed=9)
    for matrix in range(3):
        expected = z.clone()
        for n in range(5):
            inner = block.u @ (block.v @ z[n]) + block.bias
            for d in range(4):
                expected[n, d] += max(0.0, (block.scale[matrix, d] * inner[d] + block.shift[matrix, d]).item())
        assert torch.allclose(block(z, matrix), expected, atol=1e-5)


def test_a_new_block_is_the_identity_and_can_learn() -> None:
    block, z = ResidualBlock(4, 2, 1, torch.Generator().manual_seed(0)), draw(5, 4)
    out = block(z, 0)
    assert torch.equal(out, z)
    out.square().sum().backward()
    assert block.u.grad is not None and block.u.grad.any(), "relu would have none at 0"


def some_gradients(matrices: dict[str, tuple[int, int]]) -> dict[str, TokenGradients]:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    return {
        name: TokenGradients(
            draw(2, 3, reads, seed=n) * mask.unsqueeze(-1), draw(2, 3, writes, seed=50 + n) * mask.unsqueeze(-1), mask
        )
        for n, (name, (reads, writes)) in enumerate(matrices.items())
    }


MATRICES = {"0.up": (3, 5), "0.down": (5, 3), "1.up": (3, 5), "1.down": (5, 3)}


def test_the_network_is_the_paper_taken_literally() -> None:
    network, gradients = GradientTransforms(MATRICES, rank=2, step_size=0.1), some_gradients(MATRICES)
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=number))
    network.train()
    network(gradients)
    network.eval()
    found = network(gradients)
    assert network.transforms.keys() == {"3-5", "5-3"}, "matrices of one shape share a network"
    for number, (name, (reads, writes)) in enumerate(MATRICES.items()):
        alike = [other for other in MATRICES if MATRICES[other] == (reads, writes)]
        seen = [torch.cat([gradients[o].inputs[gradients[o].mask] for o in alike])]
        seen += [torch.cat([gradients[o].gradients[gradients[o].mask] for o in alike])]
        first, second = network.transforms[f"{reads}-{writes}"].blocks  # type: ignore[misc, union-attr]
        for row, tokens in enumerate((3, 2)):
            expected = torch.zeros(writes, reads)
            for t in range(tokens):
                u, d = gradients[name].inputs[row, t], gradients[name].gradients[row, t]
                parts = [(x - s.mean(dim=0)) / s.std(dim=0) for x, s in zip((u, d), seen, strict=True)]
                z = second(first(torch.cat(parts)[None], alike.index(name)), alike.index(name))[0]
                expected -= network.step_sizes[number] * torch.outer(z[reads:], z[:reads])
            delta = found[name][1][row].T @ found[name][0][row]
            assert torch.allclose(delta, expected, atol=1e-4), name
        assert not found[name][0][1, 2].any() and not found[name][1][1, 2].any(), "what is masked stays zero"


def test_statistics_change_in_training_alone() -> None:
    network, gradients = GradientTransforms(MATRICES, rank=2).eval(), some_gradients(MATRICES)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    network(gradients)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    network.train()
    network(gradients)
    changed = {name for name, t in network.state_dict().items() if not torch.equal(t, before[name])}
    assert changed and all("statistics" in name for name in changed)
    assert network.state_dict()["transforms.3-5.u_statistics.count"] == 10, "two matrices with five tokens each"


# ---------------------------------------------------------------------- the editor


def save_new_network(backbone: Backbone, settings: MENDNetworkSettings) -> None:
    network = MEND().build(backbone, settings)
    described = {
        "editor": "mend",
        "backbone": {"source": backbone.source, "fingerprint": backbone.fingerprint()},
        "network": settings.model_dump(mode="json"),
        "sources": [],
    }
    replace_folder(place("mend", backbone), Trained(described, network.state_dict()).files(), known_by="trained.json")


def test_at_first_an_edit_is_a_step_along_the_gradient(tiny: Backbone, facts: list[Query], at_own_home: Path) -> None:
    """Golden: ``W - eta * gradient``, against autograd and really changed weights."""
    eta = 0.05
    save_new_network(tiny, MENDNetworkSettings(layers=LAYERS, step_size=eta))
    edit, batch = MEND().edit(tiny, facts[0]), tiny.encode(facts[:1])
    plain = tiny.forward(batch)
    with edit.attached(tiny):
        edited = tiny.forward(batch)
    weights = [linear.weight for layer in LAYERS for linear in tiny.ffn(layer).matrices.values()]
    for weight in weights:
        weight.requires_grad_(True)
    steps = torch.autograd.grad(token_nll(tiny.forward(batch), batch.labels).sum(), weights)
    for weight in weights:
        weight.requires_grad_(False)
    changed = copy.deepcopy(tiny)
    weights = [linear.weight for layer in LAYERS for linear in changed.ffn(layer).matrices.values()]
    for weight, step in zip(weights, steps, strict=True):
        weight -= eta * step
    assert torch.allclose(edited, changed.forward(batch), atol=1e-4)
    assert not torch.allclose(edited, plain, atol=1e-3)
    assert (token_nll(edited, batch.labels) < token_nll(plain, batch.labels)).all()


def test_an_edit_keeps_factors_not_matrices(tiny: Backbone, facts: list[Query], at_own_home: Path) -> None:
    save_new_network(tiny, MENDNetworkSettings(layers=LAYERS))
    edit = MEND().edit(tiny, facts)
    tokens = int((tiny.encode(facts).labels != -100).sum(dim=1).max())
    for name, (reads, writes) in matrices_of(tiny, LAYERS).items():
        rank = edit.tensors[f"{name}.reads"].shape[1]
        assert edit.tensors[f"{name}.reads"].shape == (3, rank, reads)
        assert edit.tensors[f"{name}.writes"].shape == (3, rank, writes)
        assert rank == tokens or not name.startswith("-1.")


def test_edits_of_networks_with_other_layers_stack(tiny: Backbone, facts: list[Query], at_own_home: Path) -> None:
    edits = []
    for layers, fact in (((-1,), facts[0]), ((-2, -1), facts[1])):
        save_new_network(tiny, MENDNetworkSettings(layers=layers, step_size=0.5))
        edits.append(MEND().edit(tiny, fact))
    batch = tiny.encode(facts[:1])
    with attached(tiny, edits):
        both = tiny.forward(batch)
    with edits[0].attached(tiny):
        first = tiny.forward(batch)
    with edits[1].attached(tiny):
        second = tiny.forward(batch)
    assert not torch.allclose(both, first, atol=1e-3) and not torch.allclose(both, second, atol=1e-3)


def test_the_rank_is_never_more_than_a_side_of_the_matrix() -> None:
    blocks = [m for m in GradientTransforms({"0.a": (3, 5)}).modules() if isinstance(m, ResidualBlock)]
    assert [block.v.shape for block in blocks] == [(3, 8), (3, 8)]
    assert MENDNetworkSettings().rank == 1920


def test_a_network_that_was_trained_anew_is_seen(tiny: Backbone, at_own_home: Path) -> None:
    """In the same process, and by the editor that has read the one before."""
    editor = MEND()
    for layers in ((-1,), (-2, -1)):
        save_new_network(tiny, MENDNetworkSettings(layers=layers))
        assert editor.network(tiny).layers == list(layers)
        assert MEND().network(tiny) is editor.network(tiny), "and read once"


# ---------------------------------------------------------------------- without a network


def test_an_untrained_editor_says_what_to_run(tiny: Backbone, facts: list[Query], at_own_home: Path) -> None:
    for what in (MEND().prepare, MEND().lowest_layer, lambda backbone: MEND().edit(backbone, facts[0])):
        with pytest.raises(
            UnikeError, match=r"^mend has not been trained for 'tiny-.*; run: unike train --editor mend"
        ):
            what(tiny)


def test_networks_that_do_not_fit_are_refused(facts: list[Query], at_own_home: Path) -> None:
    llava, other = tiny_backbone("llava"), tiny_backbone("llava", seed=1)
    save_new_network(llava, MENDNetworkSettings(layers=(-1,), rank=2))
    folder = place("mend", llava)
    with pytest.raises(UnikeError, match=r"was trained for 'tiny-llava' \(.*run: unike train --editor mend"):
        MEND(trained=str(folder)).lowest_layer(other)
    with pytest.raises(UnikeError, match="no trained network in"):
        MEND(trained=str(at_own_home)).lowest_layer(llava)
    with pytest.raises(UnikeError, match="trained for the editor 'mend', not for 'ke'"):
        Trained.from_pretrained(folder).check("ke", llava)
    wrong = Trained.from_pretrained(folder)
    files = Trained(wrong.description | {"network": {"layers": [-1], "rank": 3}}, wrong.tensors).files()
    replace_folder(folder, files, known_by="trained.json")
    with pytest.raises(UnikeError, match="not of the form that its settings say; run: unike train"):
        MEND().lowest_layer(llava)
    (folder / "trained.safetensors").write_bytes(b"cut")
    with pytest.raises(UnikeError, match=r"the trained network in .* is damaged"):
        MEND().lowest_layer(llava)
