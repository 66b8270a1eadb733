"""The inverse covariance and its root against the equations, one after another, and against the bits of before."""

import pytest
import torch
from torch import Tensor

from unike.editors.common.covariance import inverse_root, precision, shrunken_covariance

SIZES = [(3, 8), (40, 8), (12, 12), (200, 48), (1, 5)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    states = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return states * torch.linspace(0.1, 30, shape[-1]) + 5


@pytest.mark.parametrize("shrinkage", [0.1, 0.7, 1.0])
def test_the_shrunken_covariance_in_loops(shrinkage: float) -> None:
    states = draw(6, 3).double()
    means = [float(column.sum()) / 6 for column in states.T]
    sample = [
        [sum(float((row[i] - means[i]) * (row[j] - means[j])) for row in states) / 6 for j in range(3)]
        for i in range(3)
    ]
    scale = sum(sample[i][i] for i in range(3)) / 3
    expected = [
        [(1 - shrinkage) * sample[i][j] + (shrinkage * scale if i == j else 0) for j in range(3)] for i in range(3)
    ]
    mean, covariance = shrunken_covariance(states, shrinkage)
    assert mean.tolist() == pytest.approx(means)
    assert covariance.flatten().tolist() == pytest.approx([value for row in expected for value in row])


@pytest.mark.parametrize("size", SIZES)
def test_they_undo_it(size: tuple[int, int]) -> None:
    states, identity = draw(*size), torch.eye(size[1], dtype=torch.float64)
    _, covariance = shrunken_covariance(states.double(), 0.1)
    assert torch.allclose(precision(states.double(), 0.1) @ covariance, identity, atol=1e-6)
    mean, root = states.mean(dim=0), inverse_root(covariance)
    assert torch.allclose(root.double() @ covariance @ root.double(), identity, atol=1e-3)
    assert torch.allclose(shrunken_covariance(states, 0.1)[0], mean, atol=1e-4)
    assert (root.dtype, precision(states, 0.1).dtype) == (torch.float32,) * 2


# ---------------------------------------------------------------------- bits that results depend on


def inverse_of_before(memory: Tensor, shrinkage: float) -> Tensor:
    """As keys of edits that there are were made: in single precision throughout."""
    centred = memory - memory.mean(dim=0)
    covariance = centred.T @ centred / len(memory)
    identity = torch.eye(len(covariance), device=memory.device)
    scale = covariance.diagonal().mean().clamp(min=1e-8)
    return torch.linalg.inv((1 - shrinkage) * covariance + shrinkage * scale * identity)


def root_of_before(states: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """As the gates of knowledge that there is were made: in double precision until the end."""
    states = states.double()
    mean = states.mean(dim=0)
    covariance = (states - mean).T @ (states - mean) / len(states)
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    variances, directions = torch.linalg.eigh(
        (1 - shrinkage) * covariance + shrinkage * covariance.diagonal().mean().clamp(min=1e-8) * identity
    )
    return mean.float(), (directions * variances.clamp(min=1e-12).rsqrt() @ directions.T).float()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shrinkage", [1e-4, 0.1, 1.0])
def test_not_a_bit_has_changed(size: tuple[int, int], shrinkage: float) -> None:
    for seed in range(3):
        states = draw(*size, seed=seed)
        assert torch.equal(precision(states, shrinkage), inverse_of_before(states, shrinkage))
        mean, covariance = shrunken_covariance(states.double(), shrinkage)
        for found, before in zip(
            (mean.float(), inverse_root(covariance)), root_of_before(states, shrinkage), strict=True
        ):
            assert torch.equal(found, before)
