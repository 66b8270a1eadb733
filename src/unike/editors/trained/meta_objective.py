"""What hypernetworks are trained for: that an edit holds for rephrasings and leaves everything else as it was.

A case's fact and one probe of each kind are read up to the lowest edited layer once (`read`). Under the edits of B
cases each row is asked (`ask`): the NLL of the target for the fact and its rephrasings, and ``KL(before || under the
edit)`` on what an edit should leave alone (MEND, Eq. 4; the kinds with pictures are MMEdit's, arXiv 2310.08475).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import all_right, kl, target_positions, target_tokens, token_nll
from unike.backbones.forward.split import SplitState
from unike.data.queries import GENERALITY, LOCALITY, EditCase, Query

FACT, REPHRASED, UNRELATED = "fact", GENERALITY, LOCALITY
KINDS = (FACT, *REPHRASED, *UNRELATED)
"""What is asked about a case."""


@dataclass(frozen=True, eq=False)
class FrozenQuestions:
    """The frozen part of B cases.

    Args:
        states: Kind to the B questions of that kind, run to the split.
        before: Of `UNRELATED`, the unedited model's logits at target positions, ``[n, V]``.
    """

    states: Mapping[str, SplitState]
    before: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Memory, in bytes."""
        states, before = self.states.values(), self.before.values()
        return sum(state.nbytes for state in states) + sum(logits.nbytes for logits in before)


@dataclass(frozen=True, eq=False)
class Objective:
    """What edits of B cases do.

    Args:
        losses: Kind to ``[B]``, in nats per token.
        scores: Kind to ``[B]``, 1 where the target is right or, of what is unrelated, every top token is the old one.
    """

    losses: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]


def probes_of(case: EditCase) -> dict[str, Query] | None:
    """Kind to the fact, or the first probe of that kind; None if one is missing, or has no target to be asked with."""
    found = {FACT: case.edit}
    for probe in reversed(case.probes):
        if probe.kind in KINDS and (probe.query.target or "").strip():
            found[probe.kind] = probe.query
    return found if found.keys() == set(KINDS) else None


@torch.no_grad()
def read(backbone: Backbone, cases: Sequence[EditCase], layer: int) -> FrozenQuestions:
    """Read cases up to a layer, with nothing attached.

    Args:
        backbone: The model.
        cases: B cases that have `probes_of`; of one kind all have a picture, or none.
        layer: No higher than the lowest edited one.
    """
    asked = [probes_of(case) for case in cases]
    states, before = {}, {}
    for kind in KINDS:
        queries = [probes[kind] for probes in asked if probes is not None]
        states[kind] = backbone.run_to_split(backbone.encode(queries), layer)
    for kind in UNRELATED:
        before[kind] = backbone.run_from_split(states[kind], target_positions(states[kind].labels))
    return FrozenQuestions(states, before)


def ask(backbone: Backbone, frozen: FrozenQuestions, kinds: Collection[str] = KINDS) -> Objective:
    """Ask the questions of cases while their edits are attached; gradients reach the edits.

    Args:
        backbone: The model.
        frozen: Of the B cases.
        kinds: What to ask.
    """
    losses, scores = {}, {}
    for kind in kinds:
        labels = frozen.states[kind].labels
        logits = backbone.run_from_split(frozen.states[kind], target_positions(labels))
        if kind in UNRELATED:
            before = frozen.before[kind]
            rows, _ = target_tokens(labels)
            losses[kind] = _mean_by_row(kl(before, logits), rows, len(labels))
            changed = rows[logits.argmax(dim=-1) != before.argmax(dim=-1)]
            scores[kind] = (torch.bincount(changed, minlength=len(labels)) == 0).float()
        else:
            losses[kind] = token_nll(logits, labels)
            scores[kind] = all_right(logits.detach(), labels).float()
    return Objective(losses, scores)


def _mean_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """The mean of the values ``[n]`` of each of ``count`` rows."""
    total = values.new_zeros(count).index_add(0, rows, values)
    return total / torch.bincount(rows, minlength=count).clamp(min=1)
