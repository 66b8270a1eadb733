"""What networks have in common that turn the gradient of an edit into updates of feed-forward matrices."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from unike.backbones.adapter import Backbone

Factors = tuple[Tensor, Tensor]
"""``reads [B, R, in]`` and ``writes [B, R, out]`` of an update, see `install_low_rank`."""


class Hypernetwork(nn.Module):
    """A network for some matrices of a backbone.

    Args:
        matrices: ``{layer}.{matrix}`` to ``(in, out)``, see `matrices_of`.
    """

    def __init__(self, matrices: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.matrices = dict(matrices)

    @property
    def layers(self) -> list[int]:
        """The layers whose matrices these are, as they were named."""
        return list(dict.fromkeys(int(name.partition(".")[0]) for name in self.matrices))


def matrices_of(backbone: Backbone, layers: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Every matrix of the layers' feed-forward networks, ``{layer}.{matrix}``, with its ``(in, out)``."""
    return {
        f"{layer}.{name}": (linear.in_features, linear.out_features)
        for layer in layers
        for name, linear in backbone.ffn(layer).matrices.items()
    }
