"""Training an edit: its pairs and its entry, on the answer's NLL, until the answer holds however it is asked.

The gate alone decides where an edit acts (`gate`). So where it acts the target is to come whole, whatever the question
looks like; yet pairs that were trained behind one question learn no more than what sets the target apart *there*. Asked
for a caption in words that make the model say a name, an edited caption came out as a name, too. Therefore the target
is also trained behind `OTHERS`, questions of quite another kind, with the gate as open as behind the edit's own (beyond
the paper, ``any_wording``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.functional import margins, target_positions, token_nll
from unike.backbones.forward.split import SplitState
from unike.data.queries import Query
from unike.editors.common.optimise import optimise
from unike.editors.unike.config import UniKEConfig
from unike.editors.unike.pairs import patch_of
from unike.edits.edit import Edit
from unike.edits.group import Group
from unike.edits.stack import Stack, edits_on

OTHERS = (
    "Describe the picture.",
    "What is this?",
    "If you have a minute, would you kindly put it in words for me?",
)
"""One that is answered with a sentence, one with a name, and one that begins like neither."""


def asked_otherwise(facts: Sequence[Query], config: UniKEConfig) -> list[Query]:
    """Each fact and, behind it, its target behind other questions."""
    others = OTHERS if config.any_wording and config.has_gate else ()
    return [each for fact in facts for each in (fact, *(replace(fact, prompt=other) for other in others))]


def as_the_first(state: SplitState, n: int) -> SplitState:
    """A state in which the gate takes every row for the first one of its fact.

    Args:
        state: Of `asked_otherwise`.
        n: How many facts there are.
    """
    each = len(state) // n
    tokens = tuple(state.tokens[row - row % each] for row in range(len(state)))
    pictures = None if state.pictures is None else state.pictures[::each].repeat_interleave(each, dim=0)
    return replace(state, tokens=tokens, pictures=pictures)


def train(
    backbone: Backbone, edit: Edit, trained: Sequence[Tensor], state: SplitState, anchors: Mapping[int, Tensor]
) -> None:
    """Train some tensors of an edit in place, with what is attached to the backbone acting, too.

    Args:
        backbone: The model.
        edit: Of B facts.
        trained: Its tensors that require gradients.
        state: The facts, as many rows each, run to the lowest edited layer.
        anchors: FFN inputs of unrelated questions, ``[M, D]`` for each layer, for the locality term.
    """
    stack, own = Stack(backbone, [*edits_on(backbone), edit]), Group(backbone, [edit])
    config: UniKEConfig = own.config
    positions = target_positions(state.labels)

    def loss(wanted: Tensor) -> Tensor:
        total = token_nll(backbone.run_from_split(state, positions, stack), state.labels)
        total = total.reshape(len(edit), -1).mean(dim=1)
        for layer, memory in anchors.items() if config.pairs.locality else ():
            a = patch_of(own, layer).pre_activations(memory.unsqueeze(0))
            total = total + config.pairs.locality * torch.relu(a + config.pairs.margin).mean(dim=(1, 2))
        return total * wanted

    wanted = torch.ones(len(edit), device=backbone.device)
    for _ in range(config.rounds if config.steps else 0):
        # Anew in each round: an edit that has taken gets no gradient any more, and Adam leaves it where it is.
        optimise(trained, partial(loss, wanted), steps=config.steps, lr=config.lr, clip=config.clip)
        with torch.no_grad():
            ahead = margins(backbone.run_from_split(state, positions, stack), state.labels).reshape(len(edit), -1)
        holds = (ahead[:, 0] >= config.lead) & (ahead > 0).all(dim=1)
        wanted = (~holds).float()
        if holds.all():
            break
