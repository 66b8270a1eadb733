"""Extra key-value pairs beside a feed-forward network: the intrinsic knowledge of UniKE (section 3.2, Eq. 1 and 3).

``FFN_edit(q) = FFN(q) + relu(q K^T + b) V``. The network itself is never widened: by Eq. 3 the extra pairs are a term
that is added to its output.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import target_positions
from unike.backbones.forward.hooks import Args, Hooks, Kwargs, first_input
from unike.backbones.forward.split import SplitState
from unike.backbones.sites import FFNSite
from unike.edits.layout import WIDTH, Declared, declared

PARTS = ("keys", "bias", "values")
"""The tensors of pairs, in the order of `FFNPatch`."""


@dataclass(frozen=True, eq=False)
class FFNPatch:
    """Key-value pairs of B independent edits at one layer, in fp32.

    Args:
        keys: ``[B, N, D]``.
        bias: ``[B, N]``.
        values: ``[B, N, D]``.
        edits: So many edits' pairs stand side by side. Each is multiplied by itself, and terms are added up in their
            order: so an edit that adds nothing may as well be absent, bit for bit.
    """

    keys: Tensor
    bias: Tensor
    values: Tensor
    edits: int = 1

    def pre_activations(self, q: Tensor) -> Tensor:
        """``q K^T + b``: ``[B, T, D]`` (or ``[1, T, D]``, seen by every edit) to ``[B, T, N]``."""
        products = [q @ keys.transpose(1, 2) for keys in self.keys.chunk(self.edits, dim=1)]
        return torch.cat(products, dim=-1) + self.bias.unsqueeze(1)

    def term(self, activations: Tensor) -> Tensor:
        """What activations ``[B, T, N]`` add: ``[B, T, D]``."""
        each = zip(activations.chunk(self.edits, dim=-1), self.values.chunk(self.edits, dim=1), strict=True)
        first, *others = (a @ values for a, values in each)
        return sum(others, first)

    def activations(self, q: Tensor, gate: "PairGate | None" = None) -> Tensor:
        """How much each pair fires: ``[B, T, D]`` to ``[B, T, N]``."""
        a = self.pre_activations(q)
        if gate is None:
            return torch.relu(a)
        rows = a.reshape(len(gate.scale), -1, a.shape[-1])  # [R, S, N]
        return (torch.relu(rows + gate.slack.unsqueeze(1)) * gate.scale.unsqueeze(1)).reshape(a.shape)

    def __call__(self, q: Tensor, gate: "PairGate | None" = None) -> Tensor:
        """The term that is added: ``[B, T, D]`` to ``[B, T, D]``."""
        return self.term(self.activations(q, gate))


@dataclass(frozen=True, eq=False)
class PairGate:
    """What relevance does to N pairs on each of R rows (beyond the paper, see `unike.editors.unike.gate`).

    Args:
        scale: ``[R, N]``, a factor of each activation; a row of zeros gets exactly the network's own output.
        slack: ``[R, N]``, is added to each pre-activation: the higher, the less an input must resemble the key.
    """

    scale: Tensor
    slack: Tensor


def install_patch(
    patch: FFNPatch | Callable[[], FFNPatch | None],
    site: FFNSite,
    hooks: Hooks,
    gate: Callable[[], PairGate] | None = None,
    passing: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Put pairs beside a network; they stay until ``hooks`` are removed.

    The rows a model runs on are the edits' rows, each perhaps several times in a row (beams): row ``r`` of ``R``
    belongs to edit ``r * B // R``. One edit serves any number of rows.

    Args:
        patch: The pairs, or what returns them whenever the network runs; None then leaves it as it is.
        site: The network.
        hooks: Where the hooks are kept.
        gate: Called in each pass. None is no gate, which is the paper's form.
        passing: Given the activations of each pass, ``[B, T, N]``, returns those that take effect.
    """
    read: list[Tensor] = []

    def remember(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        read[:] = [first_input(args, kwargs)]

    def add(module: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> Tensor:
        pairs = patch if isinstance(patch, FFNPatch) else patch()
        q = read.pop()
        if pairs is None:
            return output
        q = per_edit(q, len(pairs.keys))
        activations = pairs.activations(q.to(pairs.keys), None if gate is None else gate())
        if passing is not None:
            activations = passing(activations)
        return output + pairs.term(activations).reshape(output.shape).to(output)

    hooks.add_pre(site.inputs, remember)
    hooks.add(site.outputs, add)


def per_edit(hidden: Tensor, edits: int) -> Tensor:
    """``[R, S, D]`` (or OPT's flat ``[R * S, D]``) to ``[B, T, D]``: the positions each of B edits acts on.

    Raises:
        ValueError: The rows cannot be shared out evenly.
    """
    rows = hidden.shape[0] if hidden.ndim == 3 else hidden.shape[:-1].numel()
    if rows % edits:
        raise ValueError(f"{edits} attached edits need as many rows, or a multiple; the model runs on {rows}")
    return hidden.reshape(edits, -1, hidden.shape[-1])


@torch.no_grad()
def wrong_positions(backbone: Backbone, state: SplitState) -> Tensor:
    """``[B, S]`` bool: where a wrong answer token is predicted; every answer position of a row that has none wrong."""
    return wrong_predictions(backbone.run_from_split(state, target_positions(state.labels)), state.labels)


def wrong_predictions(logits: Tensor, labels: Tensor) -> Tensor:
    """`wrong_positions` from the logits ``[n, V]`` at `target_positions` of the labels ``[B, S]``."""
    positions = target_positions(labels)
    wrong = torch.zeros_like(positions)
    wrong[positions] = logits.argmax(dim=-1) != labels.roll(-1, dims=1)[positions]
    return torch.where(wrong.any(dim=1, keepdim=True), wrong, positions)


def pairs_layout(layers: Sequence[int], n: int) -> dict[str, Declared]:
    """Tensors of an edit that adds so many pairs to layers."""
    parts = {"keys": declared(n, WIDTH), "bias": declared(n), "values": declared(n, WIDTH)}
    return {f"{layer}.{part}": wanted for layer in layers for part, wanted in parts.items()}
