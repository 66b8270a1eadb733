"""The gradient of an edit's loss by the matrices of feed-forward networks, as a sum over tokens.

With ``u_t`` what a map reads at token ``t`` and ``d_t`` the gradient by what it writes there, the gradient by its
weight is ``sum_t d_t u_t^T``. Hypernetworks work on the factors, which are much smaller (MEND, Mitchell et al. 2022a).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import target_positions, token_nll
from unike.backbones.forward.hooks import Args, Hooks, Kwargs
from unike.backbones.forward.split import SplitState


@dataclass(frozen=True, eq=False)
class TokenGradients:
    """The factors of one matrix's gradient for B independent edits, in fp32; T is the number of tokens that matter.

    Args:
        inputs: ``u [B, T, in]``.
        gradients: ``d [B, T, out]``.
        mask: ``[B, T]`` bool, false where an edit has fewer tokens; both factors are zero there.
    """

    inputs: Tensor
    gradients: Tensor
    mask: Tensor

    @classmethod
    def without_zeros(cls, inputs: Tensor, gradients: Tensor) -> "TokenGradients":
        """Leave out the tokens at which a factor is zero, from ``[B, S, in]`` and ``[B, S, out]``."""
        alive = (inputs != 0).any(dim=-1) & (gradients != 0).any(dim=-1)
        order = alive.int().sort(dim=1, descending=True, stable=True).indices[:, : int(alive.sum(dim=1).max())]
        mask = alive.gather(1, order)
        rows = torch.arange(len(order), device=order.device).unsqueeze(1)
        u, d = (factor[rows, order].float() * mask.unsqueeze(-1) for factor in (inputs, gradients))
        return cls(u, d, mask)


def token_gradients(backbone: Backbone, state: SplitState, layers: Sequence[int]) -> dict[str, TokenGradients]:
    """Run an edit's loss, the NLL of its target, backwards once.

    Args:
        backbone: The model.
        state: B facts with targets, run to the lowest of the layers or below.
        layers: Whose feed-forward networks.

    Returns:
        ``{layer}.{matrix}`` to its factors.
    """
    matrices = {f"{i}.{name}": linear for i in layers for name, linear in backbone.ffn(i).matrices.items()}
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def record(name: str, hooks: Hooks) -> None:
        def keep(module: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> Tensor:
            # below the lowest matrix nothing is trained, so that a graph has to begin here
            inputs[name] = args[0].detach()
            outputs[name] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[name]

        hooks.add(matrices[name], keep)

    with torch.enable_grad(), Hooks() as hooks:
        for name in matrices:
            record(name, hooks)
        logits = backbone.run_from_split(state, target_positions(state.labels))
        loss = token_nll(logits, state.labels).sum()
        gradients = torch.autograd.grad(loss, list(outputs.values()))
    rows = len(state)
    return {
        name: TokenGradients.without_zeros(
            inputs[name].reshape(rows, -1, inputs[name].shape[-1]), gradient.reshape(rows, -1, gradient.shape[-1])
        )
        for name, gradient in zip(outputs, gradients, strict=True)
    }
