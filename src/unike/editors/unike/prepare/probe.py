"""What an encoder has learned: whether it knows truth, on answers that nothing has seen, and what a state is about."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unike.core.errors import UnikeError
from unike.data.sampling import hold_out


def retrieval_accuracy(sem: Tensor, pos: Tensor) -> float:
    """How often the encoded state nearest to a question, by cosine, is that of its own answer.

    Args:
        sem: ``[T, D]``, anchors as in `semantic_loss`.
        pos: ``[T, D]``, encoded.
    """
    nearest = (F.normalize(sem, dim=-1) @ F.normalize(pos, dim=-1).T).argmax(dim=1)
    return (nearest == torch.arange(len(sem), device=nearest.device)).float().mean().item()


@dataclass(frozen=True, eq=False)
class AnswerSplit:
    """A split of true and false answers such that none of the answers tested on is seen in training.

    Args:
        train: ``[T]`` bool, the triplets neither of whose answers is tested on.
        test_pos: ``[T]`` bool, whose true answer is tested on.
        test_neg: ``[T]`` bool, whose false answer is; as many as true ones.
        n_tested: How many different answers are set aside.
    """

    train: Tensor
    test_pos: Tensor
    test_neg: Tensor
    n_tested: int


def split_by_answer(
    positive: Sequence[str], negative: Sequence[str], part: float = 0.2, *, seed: int = 0
) -> AnswerSplit:
    """Set answers aside, at random, until they make up the part that is wanted.

    Args:
        positive: The true answers of T triplets.
        negative: Their false answers.
        part: Of the 2T states.
        seed: Of the choice.

    Raises:
        UnikeError: Too few answers, or too few that are on one side only.
    """
    answers = [*positive, *negative]
    aside = hold_out(answers, part, seed=seed)
    pos, neg = aside[: len(positive)], aside[len(positive) :]
    generator = torch.Generator().manual_seed(seed)

    def some(mask: Tensor, count: int) -> Tensor:
        places = mask.nonzero()[:, 0]
        kept = torch.zeros_like(mask)
        kept[places[torch.randperm(len(places), generator=generator)[:count]]] = True
        return kept

    train, count = ~(pos | neg), min(int(pos.sum()), int(neg.sum()))
    if not count or train.sum() < 4:
        raise UnikeError(f"{len(positive)} triplets have too few different answers to set some aside; collect more")
    n_tested = len({answer for answer, is_aside in zip(answers, aside.tolist(), strict=True) if is_aside})
    return AnswerSplit(train, some(pos, count), some(neg, count), n_tested)


def probe_accuracy(pos: Tensor, neg: Tensor, split: AnswerSplit) -> tuple[float, int]:
    """How well a linear probe tells true answers from false ones that it has never seen; chance is 0.5.

    Of answers that occur in training, a probe, or an encoder before it, may simply remember which are true. So states
    must come from an encoder that was trained on ``split.train`` alone, if it was trained at all.

    Args:
        pos: ``[T, d]``, states behind true answers, or what an encoder makes of them.
        neg: ``[T, d]``, the same of false answers.
        split: From `split_by_answer`.

    Returns:
        The accuracy, and the number of states it was measured on.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def rows(true: Tensor, false: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.cat([torch.ones(int(true.sum())), torch.zeros(int(false.sum()))])
        return torch.cat([pos[true], neg[false]]).float().cpu(), labels

    (train, known), (test, unknown) = rows(split.train, split.train), rows(split.test_pos, split.test_neg)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    probe.fit(train.numpy(), known.numpy())
    return float(probe.score(test.numpy(), unknown.numpy())), len(test)
