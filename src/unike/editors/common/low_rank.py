"""Weight updates of linear maps that are applied beside them: ``W x + dW x``, so that the backbone stays untouched."""

from torch import Tensor, nn

from unike.backbones.forward.hooks import Args, Hooks, Kwargs
from unike.editors.common.pairs import per_edit


def install_delta(linear: nn.Module, delta: Tensor, hooks: Hooks) -> None:
    """Let a linear map act as if its weight were ``W + dW``.

    Args:
        linear: The map, ``in -> out``.
        delta: ``[B, out, in]`` fp32, one update for each of B independent edits.
        hooks: Where the hook is kept.
    """

    def add(module: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> Tensor:
        x = per_edit(args[0], len(delta)).to(delta)
        return output + (x @ delta.transpose(1, 2)).reshape(output.shape).to(output)

    hooks.add(linear, add)


def install_low_rank(linear: nn.Module, reads: Tensor, writes: Tensor, hooks: Hooks) -> None:
    """Let a linear map act as if its weight were ``W + sum_r writes_r reads_r^T``; the sum is never formed.

    Args:
        linear: The map, ``in -> out``.
        reads: ``[B, R, in]`` fp32, for each of B independent edits; rows of zeros make the rank of one smaller.
        writes: ``[B, R, out]`` fp32.
        hooks: Where the hook is kept.
    """

    def add(module: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> Tensor:
        x = per_edit(args[0], len(reads)).to(reads)  # [B, T, in]
        return output + (x @ reads.transpose(1, 2) @ writes).reshape(output.shape).to(output)

    hooks.add(linear, add)
