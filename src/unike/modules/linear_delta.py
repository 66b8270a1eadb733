"""Weight updates of linear maps that are applied beside them: ``W x + dW x``, so that the backbone stays untouched."""

from torch import Tensor, nn

from unike.hooks import Args, Hooks, Kwargs
from unike.modules.ffn_patch import per_edit


def install_delta(linear: nn.Module, delta: Tensor, hooks: Hooks) -> None:
    """Let a linear map act as if its weight were ``W + dW``.

    Args:
        linear: The map, ``in -> out``.
        delta: ``[B, out, in]`` fp32, one update for each of B independent edits.
        hooks: Where the hook is kept.
    """

    def add(module: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> Tensor:
        x = per_edit(args[0], len(delta)).float()
        return output + (x @ delta.transpose(1, 2)).reshape(output.shape).to(output.dtype)

    hooks.add(linear, add)
