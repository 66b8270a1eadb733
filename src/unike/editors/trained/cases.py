"""Which cases a network learns from, in which batches, and what is computed once of each."""

import random
from collections.abc import Callable, Sequence

from unike.backbones.adapter import Backbone
from unike.backbones.answers import Answers
from unike.core.errors import UnikeError
from unike.data.queries import EditCase
from unike.editors.trained.base import Frozen
from unike.editors.trained.meta_objective import probes_of

ASKED_TOGETHER = 64
"""Cases that are looked at together, to find those that the backbone gets wrong."""


def choose(
    backbone: Backbone,
    cases: Sequence[EditCase],
    count: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[EditCase]:
    """Cases that the backbone gets wrong and that have every probe a network is trained with.

    Args:
        backbone: Without edits.
        cases: In any order.
        count: At most so many; no more are asked than that takes.
        seed: Of the order they are looked at in.
        progress: Called with the number of cases found, and ``count``.

    Raises:
        UnikeError: There is none.
    """
    order = [case for case in cases if probes_of(case)]
    random.Random(seed).shuffle(order)
    answers = Answers(backbone, backbone.room([case.edit.target or "" for case in order]))
    wrong: list[EditCase] = []
    for start in range(0, len(order), ASKED_TOGETHER):
        part = order[start : start + ASKED_TOGETHER]
        answers.ask([case.edit for case in part])
        wrong += [case for case in part if not case.edit.accepts(answers[case.edit])]
        progress(min(len(wrong), count), count)
        if len(wrong) >= count:
            break
    if not wrong:
        raise UnikeError(
            f"none of {len(cases)} cases can be trained with: {len(order)} have both rephrasings and unrelated "
            f"questions with answers, and {backbone.source} gets all of those right"
        )
    return wrong[:count]


def batches_of(cases: Sequence[EditCase], size: int) -> list[list[EditCase]]:
    """Batches in which a kind of question has a picture in all cases or in none; some families cannot mix the two."""
    alike: dict[tuple[bool, ...], list[EditCase]] = {}
    for case in cases:
        pictured = tuple(query.image is not None for query in (probes_of(case) or {}).values())
        alike.setdefault(pictured, []).append(case)
    return [group[start : start + size] for group in alike.values() for start in range(0, len(group), size)]


class FrozenBatches:
    """What is computed once for each batch, as long as memory lasts.

    Args:
        read: Computes it.
        batches: Of cases.
        limit: In bytes.
    """

    def __init__(
        self, read: Callable[[Sequence[EditCase]], Frozen], batches: Sequence[Sequence[EditCase]], limit: float
    ) -> None:
        self.read, self.batches, self.left = read, batches, limit
        self._kept: dict[int, Frozen] = {}

    def __getitem__(self, number: int) -> Frozen:
        if number in self._kept:
            return self._kept[number]
        frozen = self.read(self.batches[number])
        if frozen.nbytes <= self.left:
            self._kept[number] = frozen
            self.left -= frozen.nbytes
        return frozen
