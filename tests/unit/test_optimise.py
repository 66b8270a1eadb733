"""The inner loop of an edit, against torch's own Adam run once for each row."""

import pytest
import torch
from torch import Tensor

from unike.editors.common.optimise import clip_rows, optimise

ROWS = 3
SHAPES = [(ROWS, 4, 2), (ROWS, 5)]
SCALES = torch.tensor([1e-3, 1.0, 50.0])
"""One row's gradients are tiny, one's are large."""


def draw(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


TARGETS = draw(1)


def loss_of(parameters: list[Tensor], targets: list[Tensor], scales: Tensor) -> Tensor:
    parts = [(torch.tanh(p) - t).square().flatten(1).sum(dim=1) for p, t in zip(parameters, targets, strict=True)]
    return scales * torch.stack(parts).sum(dim=0)


def literally(row: int, steps: int, clip: float | None) -> tuple[list[Tensor], list[float]]:
    """Torch's Adam on one row alone, its gradient clipped by hand."""
    parameters = [p[row : row + 1].clone().requires_grad_() for p in draw(0)]
    adam, losses = torch.optim.Adam(parameters, lr=0.05), []
    for _ in range(steps):
        adam.zero_grad()
        loss = loss_of(parameters, [t[row : row + 1] for t in TARGETS], SCALES[row : row + 1]).sum()
        loss.backward()
        losses.append(loss.item())
        norm = sum(p.grad.square().sum().item() for p in parameters) ** 0.5
        if clip is not None and norm > clip:
            for p in parameters:
                p.grad *= clip / norm
        adam.step()
    return [p.detach() for p in parameters], losses


@pytest.mark.parametrize("clip", [None, 0.5, 1e9])
def test_rows_take_the_steps_they_would_take_alone(clip: float | None) -> None:
    parameters = [p.requires_grad_() for p in draw(0)]
    history = optimise(parameters, lambda: loss_of(parameters, TARGETS, SCALES), steps=8, lr=0.05, clip=clip)
    assert history.shape == (8, ROWS)
    assert not history.requires_grad
    for row in range(ROWS):
        alone, losses = literally(row, 8, clip)
        assert history[:, row].tolist() == pytest.approx(losses, rel=1e-4)
        for p, expected in zip(parameters, alone, strict=True):
            assert torch.allclose(p[row : row + 1], expected, atol=1e-5)
    assert (history[-1] < history[0]).all()


def test_clipping_is_by_row_over_all_parameters() -> None:
    parameters = [p.requires_grad_() for p in draw(0)]
    loss_of(parameters, TARGETS, SCALES).sum().backward()
    before = [p.grad.clone() for p in parameters]
    clip_rows(parameters, 0.5)
    for row in range(ROWS):
        norm = torch.cat([g[row].flatten() for g in before]).norm()
        for p, g in zip(parameters, before, strict=True):
            assert torch.allclose(p.grad[row], g[row] * min(1.0, 0.5 / norm.item()), rtol=1e-5)
    norms = [torch.cat([p.grad[row].flatten() for p in parameters]).norm().item() for row in range(ROWS)]
    assert norms[0] < 0.1, "a small gradient is left alone"
    assert norms[1:] == pytest.approx([0.5, 0.5])


def test_a_gradient_of_zero_and_a_parameter_without_one_are_fine() -> None:
    used, unused = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    optimise([used, unused], lambda: used.sum(dim=1) * torch.tensor([0.0, 1.0]), steps=2, lr=0.1, clip=1.0)
    assert torch.equal(used[0], torch.ones(3))
    assert (used[1] < 1).all()
    assert torch.equal(unused, torch.ones(2, 3))


def test_no_steps() -> None:
    parameter = torch.ones(2, 3, requires_grad=True)
    history = optimise([parameter], lambda: pytest.fail("called"), steps=0, lr=1.0)
    assert history.shape == (0, 2)
    assert torch.equal(parameter, torch.ones(2, 3))


def test_the_callers_no_grad_does_not_matter() -> None:
    parameter = torch.ones(2, 3, requires_grad=True)
    with torch.no_grad():
        optimise([parameter], lambda: parameter.square().sum(dim=1), steps=1, lr=0.1)
    assert torch.allclose(parameter, torch.full((2, 3), 0.9))


def test_it_stops_before_the_step_when_it_is_told_to() -> None:
    parameters = [p.requires_grad_() for p in draw(0)]
    history = optimise(
        parameters,
        lambda: loss_of(parameters, TARGETS, SCALES),
        steps=8,
        lr=0.05,
        stop=iter([False, False, True]).__next__,
    )
    assert history.shape == (3, ROWS)
    expected, losses = literally(2, 2, None)
    assert history[:2, 2].tolist() == pytest.approx(losses, rel=1e-5)
    assert all(torch.allclose(p[2:], e, atol=1e-6) for p, e in zip(parameters, expected, strict=True))


def test_weight_decay_is_adams() -> None:
    parameter = torch.ones(2, 3).requires_grad_()
    optimise([parameter], lambda: 0 * parameter.sum(dim=1), steps=1, lr=0.1, weight_decay=0.01)
    assert torch.allclose(parameter, torch.full((2, 3), 0.9)), "the first step of Adam is as long as its rate"
