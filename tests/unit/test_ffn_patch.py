"""Extra key-value pairs and weight updates beside a network, against loops and against really changed networks."""

import pytest
import torch
from torch import Tensor, nn

from unike.backbones.forward.hooks import Hooks
from unike.backbones.sites import FFNSite
from unike.editors.common.low_rank import install_delta
from unike.editors.common.pairs import FFNPatch, PairGate, install_patch, per_edit

D, F, N = 6, 9, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_patch(edits: int) -> FFNPatch:
    return FFNPatch(draw(edits, N, D, seed=1), draw(edits, N, seed=2), draw(edits, N, D, seed=3))


class Network(nn.Module):
    """OPT's: two maps with biases and a ReLU between."""

    def __init__(self, hidden: int = F) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.fc1, self.fc2 = nn.Linear(D, hidden), nn.Linear(hidden, D)
        self.requires_grad_(False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(hidden_states)))


@pytest.fixture
def network() -> Network:
    return Network()


def flat_site(network: Network) -> FFNSite:
    return FFNSite(network.fc1, network.fc2, {"fc1": network.fc1, "fc2": network.fc2}, gated=False)


def whole_site(network: Network) -> FFNSite:
    return FFNSite(network, network, {}, gated=True)


def widened(network: Network, patch: FFNPatch, edit: int) -> Network:
    """Eq. 3 taken at its word: keys, biases and values concatenated with the network's own."""
    wide = Network(F + N)
    wide.fc1.weight = nn.Parameter(torch.cat([network.fc1.weight, patch.keys[edit]]), requires_grad=False)
    wide.fc1.bias = nn.Parameter(torch.cat([network.fc1.bias, patch.bias[edit]]), requires_grad=False)
    wide.fc2.weight = nn.Parameter(torch.cat([network.fc2.weight, patch.values[edit].T], dim=1), requires_grad=False)
    wide.fc2.bias = network.fc2.bias
    return wide


# ---------------------------------------------------------------------- Eq. 3


def test_the_term_is_a_sum_over_pairs() -> None:
    patch, q = some_patch(2), draw(2, 3, D)
    expected = torch.zeros(2, 3, D)
    for row in range(2):
        for position in range(3):
            for pair in range(N):
                a = sum(q[row, position, d] * patch.keys[row, pair, d] for d in range(D)) + patch.bias[row, pair]
                assert patch.pre_activations(q)[row, position, pair] == pytest.approx(a.item(), abs=1e-5)
                expected[row, position] += max(a.item(), 0.0) * patch.values[row, pair]
    assert torch.allclose(patch(q), expected, atol=1e-5)


def test_one_memory_is_seen_by_every_edit() -> None:
    patch, memory = some_patch(3), draw(1, 5, D)
    assert torch.allclose(patch.pre_activations(memory), patch.pre_activations(memory.expand(3, -1, -1)), atol=1e-6)


def test_gradients_are_those_of_the_equation() -> None:
    shapes = [(2, 3, D), (2, N, D), (2, N), (2, N, D)]
    tensors = [draw(*shape, seed=i).double().requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(lambda q, keys, bias, values: FFNPatch(keys, bias, values)(q), tensors)


@pytest.mark.parametrize("flat", [True, False])
def test_a_patch_beside_the_network_equals_a_wider_network(network: Network, flat: bool) -> None:
    patch, hidden = some_patch(1), draw(2, 5, D)
    x = hidden.reshape(-1, D) if flat else hidden
    plain = network(x)
    for site in (flat_site(network), whole_site(network)):
        with Hooks() as hooks:
            install_patch(lambda: patch, site, hooks)
            hooked = network(x)
        assert torch.allclose(hooked, widened(network, patch, 0)(x), atol=1e-6)
        assert not torch.allclose(hooked, plain, atol=1e-1)
        assert torch.equal(network(x), plain)


# ---------------------------------------------------------------------- rows and edits


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("beams", [1, 2, 3])
def test_every_row_gets_its_own_pairs(network: Network, flat: bool, beams: int) -> None:
    patch, rows = some_patch(2), draw(2 * beams, 5, D)
    with Hooks() as hooks:
        install_patch(lambda: patch, flat_site(network), hooks)
        out = network(rows.reshape(-1, D) if flat else rows).reshape(rows.shape)
    for row in range(2 * beams):
        assert torch.allclose(out[row], widened(network, patch, row // beams)(rows[row]), atol=1e-6)


@pytest.mark.parametrize("flat", [True, False])
def test_a_gate_scales_each_pair_of_each_row_and_lowers_its_threshold(network: Network, flat: bool) -> None:
    patch, rows = some_patch(2), draw(4, 5, D)
    scale, slack = torch.rand(2, 4, N, generator=torch.Generator().manual_seed(4))
    scale[0], scale[1], slack[1] = 0, 1, 0
    x = rows.reshape(-1, D) if flat else rows
    plain = network(x).reshape(rows.shape)
    with Hooks() as hooks:
        install_patch(lambda: patch, flat_site(network), hooks, lambda: PairGate(scale, slack))
        out = network(x).reshape(rows.shape)
    for row in range(4):
        scaled = FFNPatch(patch.keys, patch.bias + slack[row], patch.values * scale[row].unsqueeze(-1))
        assert torch.allclose(out[row], widened(network, scaled, row // 2)(rows[row]), atol=1e-6)
    assert torch.equal(out[0], plain[0]), "a closed gate is the network itself, bit for bit"
    assert torch.allclose(out[1], widened(network, patch, 0)(rows[1]), atol=1e-6)


def test_pairs_are_asked_for_in_each_pass(network: Network) -> None:
    """What is trained is replaced or changed in place between passes; the hooks must not keep what they saw first."""
    pairs, x = [some_patch(1)], draw(1, 5, D)
    with Hooks() as hooks:
        install_patch(lambda: pairs[0], whole_site(network), hooks)
        first = network(x)
        pairs[0].values.zero_()
        assert torch.equal(network(x) + some_patch(1)(x), first)
        pairs[0] = some_patch(1)
        assert torch.equal(network(x), first)


def test_positions_are_shared_out_among_edits() -> None:
    hidden = torch.arange(4 * 3 * 2.0).reshape(4, 3, 2)
    shared = per_edit(hidden, 2)
    assert shared.shape == (2, 6, 2)
    assert torch.equal(shared[0], torch.cat([hidden[0], hidden[1]]))
    assert torch.equal(per_edit(hidden.reshape(-1, 2), 2), shared)
    assert torch.equal(per_edit(hidden, 1), hidden.reshape(1, 12, 2))


@pytest.mark.parametrize(("shape", "edits", "rows"), [((4, 3, 2), 3, 4), ((1, 3, 2), 3, 1), ((8, 2), 3, 8)])
def test_rows_that_cannot_be_shared_out_are_refused(shape: tuple[int, ...], edits: int, rows: int) -> None:
    with pytest.raises(ValueError, match=f"{edits} attached edits need as many rows, .* runs on {rows}"):
        per_edit(torch.zeros(shape), edits)


def test_the_output_keeps_its_dtype_and_inputs_may_come_by_keyword(network: Network) -> None:
    patch, x = some_patch(1), draw(1, 5, D)
    expected = network(x) + patch(x)
    with Hooks() as hooks:
        install_patch(lambda: patch, whole_site(network), hooks)
        assert torch.equal(network(hidden_states=x), expected)
        half = network.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), expected, atol=0.1)


# ---------------------------------------------------------------------- weight updates


def test_an_update_beside_a_map_equals_a_changed_weight() -> None:
    linear = nn.Linear(D, F).requires_grad_(False)
    delta, x = draw(2, F, D), draw(4, 3, D, seed=1)
    with Hooks() as hooks:
        install_delta(linear, delta, hooks)
        out = linear(x)
        assert torch.equal(linear(x.reshape(-1, D)).reshape(out.shape), out)
    for row in range(4):
        changed = x[row] @ (linear.weight + delta[row // 2]).T + linear.bias
        assert torch.allclose(out[row], changed, atol=1e-5)
