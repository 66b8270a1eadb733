"""Edits that are changes of weights and nothing else: what they add to which linear map."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class WeightUpdate:
    """A change of a linear map, ``W + dW``, of one edit or of several together.

    Args:
        linear: The map, ``in -> out``.
        writes: ``[R, out]`` fp32 of ``dW = sum_r writes_r reads_r^T``; without ``reads`` it is ``dW`` itself, ``[out,
            in]``.
        reads: ``[R, in]`` fp32, or None.
    """

    linear: nn.Linear
    writes: Tensor
    reads: Tensor | None = None

    @property
    def delta(self) -> Tensor:
        """``dW [out, in]`` fp32."""
        return self.writes if self.reads is None else self.writes.T @ self.reads
