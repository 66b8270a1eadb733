"""Losses, zeta and its map against the equations in loops; training and probes on sets whose structure is known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unike.core.errors import UnikeError
from unike.data.sampling import hold_out
from unike.editors.unike.prepare.probe import probe_accuracy, retrieval_accuracy, split_by_answer
from unike.editors.unike.prepare.train import train_encoder
from unike.editors.unike.spaces import Encoder, fit_w_zeta, semantic_loss, truthfulness_loss, zeta


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def s(a: Tensor, b: Tensor, tau: float) -> float:
    return float(a @ b / a.norm() / b.norm()) / tau


# ---------------------------------------------------------------------- losses


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_the_truthfulness_loss_is_eq_4(tau: float) -> None:
    pos, neg = draw(5, 7), draw(5, 7, seed=1)
    total = 0.0
    for own, other in ((pos, neg), (neg, pos)):
        for i in range(5):
            alike = sum(math.exp(s(own[i], own[j], tau)) for j in range(5) if j != i)
            opposite = sum(math.exp(s(own[i], other[j], tau)) for j in range(5))
            total -= math.log(alike / (alike + opposite))
    assert truthfulness_loss(pos, neg, tau).item() == pytest.approx(total / 5, rel=1e-5)


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_the_semantic_loss_is_eq_5(tau: float) -> None:
    sem, pos, neg = draw(5, 7), draw(5, 7, seed=1), draw(5, 7, seed=2)
    total = 0.0
    for i in range(5):
        own = math.exp(s(sem[i], pos[i], tau)) + math.exp(s(sem[i], neg[i], tau))
        everything = sum(math.exp(s(sem[i], pos[j], tau)) + math.exp(s(sem[i], neg[j], tau)) for j in range(5))
        total -= math.log(own / everything)
    assert semantic_loss(sem, pos, neg, tau).item() == pytest.approx(total / 5, rel=1e-5)


def test_the_losses_have_the_right_gradients() -> None:
    pos, neg, sem = (draw(4, 3, seed=seed).double().requires_grad_() for seed in range(3))
    assert torch.autograd.gradcheck(lambda p, n: truthfulness_loss(p, n, 0.5), (pos, neg))
    assert torch.autograd.gradcheck(lambda q, p, n: semantic_loss(q, p, n, 0.5), (sem, pos, neg))


def test_the_losses_do_not_overflow() -> None:
    pos, neg = 100 * draw(6, 4), 100 * draw(6, 4, seed=1)
    assert truthfulness_loss(pos, neg, 1e-3).isfinite()
    assert semantic_loss(pos, pos, neg, 1e-3).isfinite()


def test_one_triplet_has_nothing_to_be_like() -> None:
    with pytest.raises(ValueError, match="at least two"):
        truthfulness_loss(draw(1, 3), draw(1, 3), 0.1)


def test_retrieval_counts_the_nearest() -> None:
    sem = torch.eye(4)
    pos = torch.stack([sem[0], 9 * sem[1] + sem[2], sem[3], sem[3] + 0.1 * sem[2]])
    assert retrieval_accuracy(sem, pos) == pytest.approx(2 / 4)  # 2 finds none of its own, 3 finds 2's


# ---------------------------------------------------------------------- zeta


def test_zeta_points_from_false_to_true() -> None:
    pos, neg = draw(6, 3), draw(4, 3, seed=1)
    expected = [sum(row[i] for row in pos) / 6 - sum(row[i] for row in neg) / 4 for i in range(3)]
    assert zeta(pos, neg).tolist() == pytest.approx([float(value) for value in expected], abs=1e-6)


def test_w_zeta_is_ridge_regression() -> None:
    """Each output by itself, as the minimum of the penalised squares that gradient descent finds."""
    delta, write, ridge = draw(20, 3), draw(20, 4, seed=1), 0.3
    penalty = ridge * float((delta**2).sum()) / 3
    for row in range(4):
        w = torch.zeros(3)
        for _ in range(300):
            gradient = torch.zeros(3)
            for t in range(20):
                gradient += (w @ delta[t] - write[t, row]) * delta[t]
            w = w - 0.03 * (gradient + penalty * w)
        assert torch.allclose(fit_w_zeta(delta, write, ridge)[row], w, atol=1e-4)


def test_w_zeta_finds_a_map_that_is_there_at_any_scale() -> None:
    true_map, delta = draw(4, 3, seed=2), draw(50, 3)
    for scale in (1e-3, 1.0, 1e3):
        found = fit_w_zeta(scale * delta, scale * delta @ true_map.T, 1e-6)
        assert torch.allclose(found, true_map, atol=1e-3)


def test_w_zeta_of_states_that_do_not_differ_is_nothing() -> None:
    assert not fit_w_zeta(torch.zeros(5, 3), draw(5, 4)).any()


# ---------------------------------------------------------------------- encoders and their training


def test_an_encoder_is_two_maps_with_gelu_between_and_has_its_seed() -> None:
    before = torch.get_rng_state()
    encoder, states = Encoder(5, 7, 3, seed=4), draw(2, 5)
    assert torch.equal(torch.get_rng_state(), before)
    inner = states @ encoder.inner.weight.T + encoder.inner.bias
    gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    assert torch.allclose(encoder(states), gelu @ encoder.outer.weight.T + encoder.outer.bias, atol=1e-6)
    again, other = Encoder(5, 7, 3, seed=4), Encoder(5, 7, 3, seed=5)
    assert torch.equal(again(states), encoder(states))
    assert not torch.equal(other(states), encoder(states))
    assert torch.equal(Encoder.from_weights(encoder.state_dict())(states), encoder(states))


def test_an_encoder_starts_from_standardised_states() -> None:
    states = 1000 * draw(50, 5) * torch.tensor([1, 1e-2, 1, 1, 0]) + 300
    standard = (states - states.mean(dim=0)) / states.std(dim=0).clamp(min=1)
    encoder = Encoder(5, 7, 3).standardise(states)
    assert torch.allclose(encoder(states), Encoder(5, 7, 3)(standard), atol=1e-3)


Set = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def triplets() -> Set:
    """sem, pos, neg ``[240, 12]``: a topic of each triplet's own, and truth in a corner that XOR hides from means."""
    topic, sign = draw(240, 12), draw(240, 1, seed=1).sign()
    corner = torch.zeros(240, 2)
    true, false = (torch.cat([sign, other * sign], dim=1) for other in (1, -1))
    return (
        topic,
        torch.cat([topic[:, :10], corner + 3 * true], dim=1),
        torch.cat([topic[:, :10], corner + 3 * false], dim=1),
    )


def true_from_false(pos: Tensor, neg: Tensor) -> float:
    """How often a state is nearest to one of its own kind."""
    points = torch.nn.functional.normalize(torch.cat([pos, neg]), dim=1)
    similar = (points @ points.T).fill_diagonal_(-1)
    return ((similar.argmax(dim=1) < len(pos)) == (torch.arange(2 * len(pos)) < len(pos))).float().mean().item()


def test_training_pulls_truth_apart_whatever_it_is_about(triplets: Set) -> None:
    _, pos, neg = triplets
    held_out = hold_out([str(i // 2) for i in range(240)])
    encoder, history = train_encoder(
        Encoder(12, 32, 8), lambda f, p, n: truthfulness_loss(f(p), f(n)), [pos, neg], held_out, lr=1e-2, max_epochs=60
    )
    assert history[-1].held_out < 0.1 < history[0].held_out
    assert true_from_false(encoder(pos)[held_out], encoder(neg)[held_out]) == 1
    assert not encoder.training and not any(parameter.requires_grad for parameter in encoder.parameters())


def test_training_finds_the_question_of_an_answer(triplets: Set) -> None:
    sem, pos, neg = triplets
    held_out, untrained = hold_out([str(i // 2) for i in range(240)], 0.25), Encoder(12, 64, 12)
    before = retrieval_accuracy(sem[held_out], untrained(pos[held_out]))
    encoder, _ = train_encoder(
        untrained, lambda g, q, p, n: semantic_loss(q, g(p), g(n)), [sem, pos, neg], held_out, lr=1e-2, max_epochs=80
    )
    assert before < 0.2
    assert retrieval_accuracy(sem[held_out], encoder(pos[held_out])) > 0.8


def test_training_stops_early_and_keeps_the_best(triplets: Set) -> None:
    """Held-out triplets whose labels are the other way round: the better it is trained, the worse."""
    _, pos, neg = triplets
    held_out = torch.arange(240) % 4 == 0
    pos, neg = torch.where(held_out[:, None], neg, pos), torch.where(held_out[:, None], pos, neg)

    def loss(f: Encoder, p: Tensor, n: Tensor) -> Tensor:
        return torch.nn.functional.softplus(f(n) - f(p)).mean()

    start, epochs = Encoder(12, 8, 1, seed=3), []
    encoder, history = train_encoder(
        Encoder(12, 8, 1, seed=3), loss, [pos, neg], held_out, lr=1e-2, patience=4, progress=epochs.append
    )
    losses = [epoch.held_out for epoch in history]
    best = losses.index(min(losses))
    assert len(losses) == best + 4 + 1 < 50
    assert epochs == list(range(1, len(losses)))
    assert loss(encoder, pos[held_out], neg[held_out]).item() == pytest.approx(min(losses), abs=1e-6)
    if best == 0:
        assert torch.equal(encoder.inner.weight, start.inner.weight)


def test_training_is_seeded_and_takes_equal_steps(triplets: Set) -> None:
    _, pos, neg = triplets
    held_out, sizes = torch.arange(240) < 39, set()

    def loss(f: Encoder, p: Tensor, n: Tensor) -> Tensor:
        sizes.add(len(p))
        return truthfulness_loss(f(p), f(n))

    def train(seed: int) -> Tensor:
        encoder, _ = train_encoder(Encoder(12, 8, 4), loss, [pos, neg], held_out, batch=100, max_epochs=3, seed=seed)
        return encoder.outer.weight

    assert torch.equal(train(0), train(0))
    assert not torch.equal(train(0), train(1))
    assert sizes == {39, 67}, "201 triplets in three steps of 67"


# ---------------------------------------------------------------------- splits and probes


def words(count: int, kinds: int, seed: int) -> list[str]:
    return [f"answer {i}" for i in torch.randint(kinds, (count,), generator=torch.Generator().manual_seed(seed))]


def test_answers_that_are_tested_on_are_never_seen() -> None:
    positive, negative = words(400, 60, seed=0), words(400, 60, seed=1)
    split = split_by_answer(positive, negative)
    tested = {positive[i] for i in split.test_pos.nonzero()[:, 0]} | {
        negative[i] for i in split.test_neg.nonzero()[:, 0]
    }
    trained = {answers[i] for answers in (positive, negative) for i in split.train.nonzero()[:, 0]}
    assert tested and trained and not tested & trained
    assert split.test_pos.sum() == split.test_neg.sum() > 50
    assert split.n_tested == len(tested)
    assert split.train.sum() > 200


def test_too_few_answers_cannot_be_split() -> None:
    for positive, negative in [(["a"] * 9, ["b"] * 9), (list("abcdefgh"), ["x"] * 8)]:
        with pytest.raises(UnikeError, match="too few"):
            for seed in range(9):
                split_by_answer(positive, negative, seed=seed)


@pytest.mark.parametrize(("what", "low", "high"), [("noise", 0.4, 0.6), ("answers", 0.4, 0.6), ("truth", 0.99, 1.0)])
def test_a_probe_sees_truth_but_not_which_answers_are_true(what: str, low: float, high: float) -> None:
    """ "answers": states say which answer it is, and every answer is always true or always false."""
    positive = [f"true {word}" for word in words(1000, 1500, seed=0)]
    negative = [f"false {word}" for word in words(1000, 1500, seed=1)]
    code = {answer: draw(32, seed=i) for i, answer in enumerate(sorted({*positive, *negative}))}
    states: dict[str, Callable[[str, float], Tensor]] = {
        "noise": lambda answer, truth: torch.zeros(32),
        "answers": lambda answer, truth: 3 * code[answer],
        "truth": lambda answer, truth: 3 * code[answer] + 9 * truth * torch.ones(32),
    }
    pos = torch.stack([states[what](answer, 1) for answer in positive]) + draw(1000, 32, seed=-1)
    neg = torch.stack([states[what](answer, -1) for answer in negative]) + draw(1000, 32, seed=-2)
    accuracy, n = probe_accuracy(pos, neg, split_by_answer(positive, negative))
    assert n > 200
    assert low <= accuracy <= high
