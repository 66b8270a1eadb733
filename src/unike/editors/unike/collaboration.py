"""How the two halves act together: how much is injected (Eq. 7), and where values are moved (Eq. 6)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unike.editors.unike.config import UniKEConfig

if TYPE_CHECKING:
    from unike.editors.unike.knowledge import Knowledge

PLAIN_ALPHA = 0.1
"""Alpha of the cells of Table 4 that are without collaboration, unless ``fixed_alpha`` is given."""

Alpha = Callable[[Tensor, Tensor], Tensor]
"""From ``h_know[p]`` and ``h_input[p]``, ``[R, D]`` fp32 each, to alpha ``[R]``."""


@dataclass(frozen=True)
class FixedAlpha:
    """The same alpha for every input (paper, section 4.5 and Figure 4b).

    Args:
        value: 0..1; 0 leaves the model bit for bit as it is (without ``literal_eq7``).
    """

    value: float

    def __post_init__(self) -> None:
        """Refuse what would not be a mixture."""
        if not 0 <= self.value <= 1:
            raise ValueError(f"alpha={self.value} is not between 0 and 1")

    def __call__(self, h_know: Tensor, h_input: Tensor) -> Tensor:
        """``[R]`` times the value."""
        return h_input.new_full((len(h_input),), self.value)


@dataclass(frozen=True, eq=False)
class DynamicAlpha:
    """``alpha = clamp(slope * cos(Enc_sem(h_know[p]), h_input[p]) + offset, 0, 1)`` (Eq. 7).

    Args:
        encoder: ``Enc_sem``, ``[R, D]`` to ``[R, D]`` in fp32; None is the identity.
        slope: Of an affine calibration.
        offset: Of an affine calibration.

    Note:
        The calibration is beyond the paper; its own form is ``slope=1, offset=0``. The paper does not clamp.
    """

    encoder: Callable[[Tensor], Tensor] | None = None
    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, h_know: Tensor, h_input: Tensor) -> Tensor:
        """``h_know[p]`` and ``h_input[p]``, ``[R, D]`` each, to ``[R]``."""
        encoded = h_know if self.encoder is None else self.encoder(h_know)
        cosine = torch.nn.functional.cosine_similarity(encoded, h_input, dim=-1)
        return (self.slope * cosine + self.offset).clamp(0, 1)


def alpha_of(knowledge: "Knowledge", layer: int, config: UniKEConfig) -> Alpha:
    """How much is injected at a layer."""
    if config.collaboration.fixed_alpha is not None:
        return FixedAlpha(config.collaboration.fixed_alpha)
    if not config.collaborates:
        return FixedAlpha(PLAIN_ALPHA)
    return knowledge.dynamic_alpha(layer, config.collaboration.alpha_slope, config.collaboration.alpha_offset)


def shift_of(knowledge: "Knowledge", layer: int, config: UniKEConfig) -> Tensor:
    """``beta zeta'`` of a layer, ``[D]``: of the length ``beta`` times what the network usually writes (Eq. 6)."""
    known, treatment = knowledge.layer(layer), config.collaboration.zeta
    if treatment == "learned":
        return torch.zeros_like(known.mean)
    direction = known.w_semantic @ known.semantic_zeta if treatment == "semantic" else known.w_zeta @ known.zeta
    if treatment == "random":
        generator = torch.Generator().manual_seed(config.seed + layer % 1000)
        noise = torch.randn(known.zeta.shape, generator=generator).to(known.zeta)
        direction = known.w_zeta @ (noise / noise.norm() * known.zeta.norm())
    return config.collaboration.beta * known.ffn_norm * direction / direction.norm().clamp(min=1e-8)
