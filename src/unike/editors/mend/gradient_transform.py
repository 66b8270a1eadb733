"""MEND's network: from the gradient of an edit to a better update (Mitchell et al., ICLR 2022, arXiv 2110.11309).

For the factors ``u, d`` of a gradient (`token_gradients`), normalised and joined to ``z``, two residual blocks
make ``[u~; d~]`` (Eq. 3)::

    h   = z + relu(s1 * (U1 V1 z + b1) + o1),    [u~; d~] = h + relu(s2 * (U2 V2 h + b2) + o2)
    dW  = - eta sum_t d~_t u~_t^T

``U = 0`` at first, so that a new network takes a step along the gradient. Matrices of one shape share a network; scale
``s``, shift ``o`` and step size ``eta`` are a matrix's own.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unike.editors.trained.hypernetwork import Factors, Hypernetwork
from unike.editors.trained.token_gradients import TokenGradients


class RunningStatistics(nn.Module):
    """Mean and spread of all rows that were seen in training; before that, rows stay as they are.

    Args:
        width: Of the rows.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))  # the sum of squared distances from the mean

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Take in ``[n, width]`` (Chan et al. 1979, a batch at a time)."""
        count, shift = self.count + len(rows), rows.mean(dim=0) - self.mean
        self.squares += (rows - rows.mean(dim=0)).square().sum(dim=0) + shift**2 * self.count * len(rows) / count
        self.mean += shift * len(rows) / count
        self.count.copy_(count)

    def forward(self, rows: Tensor) -> Tensor:
        """``(x - mean) / spread``; what never varied is not scaled, or its first deviation would be infinite."""
        if self.count < 2:
            return rows
        spread = (self.squares / (self.count - 1)).sqrt()
        return (rows - self.mean) / torch.where(spread > 0, spread, 1)


class ResidualBlock(nn.Module):
    """``z + relu(s * (U V z + b) + o)``, the identity at first.

    Args:
        width: Of ``z``.
        rank: Of ``U V``.
        n_matrices: How many share the block, each with its own ``s`` and ``o``.
        generator: Of the random ``V``.
    """

    def __init__(self, width: int, rank: int, n_matrices: int, generator: torch.Generator) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.zeros(width, rank))
        self.v = nn.Parameter(torch.randn(rank, width, generator=generator))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(n_matrices, width))
        self.shift = nn.Parameter(torch.zeros(n_matrices, width))

    def forward(self, z: Tensor, matrix: int) -> Tensor:
        """``[n, width]``, of the ``matrix``-th that shares the block."""
        inner = self.scale[matrix] * (z @ self.v.T @ self.u.T + self.bias) + self.shift[matrix]
        # not relu: its gradient at 0, where every new block is, would be 0 for good
        return z + inner.clamp(min=0)


class GradientTransform(nn.Module):
    """The network of all matrices of one shape.

    Args:
        reads: Width of ``u``.
        writes: Width of ``d``.
        rank: Of the blocks; no more than the smaller of both widths.
        n_matrices: How many share it.
        generator: Of its start.
    """

    def __init__(self, reads: int, writes: int, rank: int, n_matrices: int, generator: torch.Generator) -> None:
        super().__init__()
        self.u_statistics, self.d_statistics = RunningStatistics(reads), RunningStatistics(writes)
        rank = min(rank, reads, writes)
        self.blocks = nn.ModuleList(
            ResidualBlock(reads + writes, rank, n_matrices, generator) for _ in ("first", "second")
        )

    def observe(self, gradients: TokenGradients) -> None:
        """Let the statistics see a gradient."""
        self.u_statistics.update(gradients.inputs[gradients.mask])
        self.d_statistics.update(gradients.gradients[gradients.mask])

    def forward(self, gradients: TokenGradients, matrix: int) -> Factors:
        """``u~ [B, T, in]`` and ``d~ [B, T, out]``, zero where the mask is false."""
        u, d, mask = gradients.inputs, gradients.gradients, gradients.mask
        z = torch.cat([self.u_statistics(u[mask]), self.d_statistics(d[mask])], dim=-1)  # [n, in + out]
        for block in self.blocks:
            z = block(z, matrix)
        new_u, new_d = z.split([u.shape[-1], d.shape[-1]], dim=-1)
        return torch.zeros_like(u).index_put((mask,), new_u), torch.zeros_like(d).index_put((mask,), new_d)


class GradientTransforms(Hypernetwork):
    """The networks of several matrices.

    Args:
        matrices: As in `Hypernetwork`.
        rank: Of the blocks.
        step_size: ``eta`` at first.
        seed: Of the start; the global generator is left alone.
    """

    def __init__(
        self, matrices: Mapping[str, tuple[int, int]], *, rank: int = 1920, step_size: float = 1e-4, seed: int = 0
    ) -> None:
        super().__init__(matrices)
        generator = torch.Generator().manual_seed(seed)
        self.sharing: dict[str, list[str]] = {}  # a shape, and the matrices that have it
        for name, shape in matrices.items():
            self.sharing.setdefault("-".join(map(str, shape)), []).append(name)
        self.transforms = nn.ModuleDict(
            {
                shape: GradientTransform(*matrices[names[0]], rank, len(names), generator)
                for shape, names in self.sharing.items()
            }
        )
        self.step_sizes = nn.Parameter(torch.full((len(matrices),), step_size))

    def forward(self, gradients: Mapping[str, TokenGradients]) -> dict[str, Factors]:
        """The update of each matrix: ``reads = u~`` and ``writes = -eta d~``. In training, statistics see it first."""
        step_sizes, found = dict(zip(self.matrices, self.step_sizes, strict=True)), {}
        for shape, names in self.sharing.items():
            transform = self.transforms[shape]
            assert isinstance(transform, GradientTransform)
            for name in names if self.training else ():
                transform.observe(gradients[name])
            for number, name in enumerate(names):
                u, d = transform(gradients[name], number)
                found[name] = (u, -step_sizes[name] * d)
        return found
