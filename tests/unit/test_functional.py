"""The shift between logits and labels, and what is computed on it."""

import pytest
import torch

from unike.backbones.forward.functional import kl, target_positions, target_tokens, token_nll

LABELS = torch.tensor([[-100, -100, 3, 4, -100], [-100, -100, -100, -100, 2], [-100, -100, -100, -100, -100]])


def test_a_target_is_predicted_one_position_earlier() -> None:
    positions = target_positions(LABELS)
    assert positions.nonzero().tolist() == [[0, 1], [0, 2], [1, 3]]
    rows, tokens = target_tokens(LABELS)
    assert (rows.tolist(), tokens.tolist()) == ([0, 0, 1], [3, 4, 2])


def test_nll_is_the_mean_over_each_rows_own_target() -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(-1)
    expected = torch.stack([-(log_p[0, 1, 3] + log_p[0, 2, 4]) / 2, -log_p[1, 3, 2], torch.tensor(0.0)])
    assert torch.allclose(token_nll(logits, LABELS), expected)
    assert torch.equal(token_nll(logits[target_positions(LABELS)], LABELS), token_nll(logits, LABELS))


def test_nll_of_a_perfect_prediction_is_zero_and_padding_does_not_count() -> None:
    logits = torch.full((1, 4, 5), -50.0)
    logits[0, 1, 2] = 50.0
    labels = torch.tensor([[-100, -100, 2, -100]])
    assert token_nll(logits, labels).item() == 0.0
    padded = torch.cat([logits, torch.randn(1, 3, 5)], dim=1)
    assert token_nll(padded, torch.cat([labels, torch.full((1, 3), -100)], dim=1)).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nll_is_computed_in_fp32(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert token_nll(logits, LABELS).dtype == torch.float32
    assert torch.equal(token_nll(logits, LABELS), token_nll(logits.float(), LABELS))


def test_nll_gradient_of_one_row_does_not_depend_on_the_others() -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (together,) = torch.autograd.grad(token_nll(logits, LABELS).sum(), logits)
    (alone,) = torch.autograd.grad(token_nll(logits[:1], LABELS[:1]).sum(), logits)
    assert torch.allclose(together[0], alone[0])


def test_kl() -> None:
    p = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    q = torch.tensor([[0.0, 0.0], [-1.0, 1.0]])
    a, b = p.softmax(-1), q.softmax(-1)
    assert torch.allclose(kl(p, q), (a * (a / b).log()).sum(-1))
    assert kl(p, q)[0].item() == 0.0
    assert torch.allclose(kl(p + 5, q - 3), kl(p, q), atol=1e-6)
