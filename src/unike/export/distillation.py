"""A LoRA that learns from an edited model what it says, for methods that are more than a change of weights.

``KL(teacher || student)`` at the positions of answers: the edited model teaches on the edits' own questions, in other
words, and on what is near them; the unedited model on what is unrelated. The LoRA is on the layers from the lowest
edited one upwards, so that everything below is computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import torch
from pydantic import Field
from torch import Tensor, nn

from unike.backbones.adapter import Backbone
from unike.backbones.forward.context import UNEDITED
from unike.backbones.forward.functional import kl, target_positions
from unike.backbones.forward.split import SplitState
from unike.core import registry
from unike.core.errors import UnikeError
from unike.core.progress import Progress, silent
from unike.core.settings import Settings
from unike.data.queries import Query
from unike.edits.edited import EditedModel
from unike.export.adapter import ADAPTER, lora_on
from unike.export.questions import UNRELATED, Asked
from unike.export.scoring import answers
from unike.export.updates import Factors


class Recipe(Settings):
    """How a LoRA is learned.

    Attributes:
        rank: Of the LoRA; of an exact one, None for its own.
        steps: Of AdamW, at a rate that falls to zero.
        lr: Its learning rate at first.
        seed: Of the start and of the order of the lessons.
    """

    rank: int | None = Field(None, ge=1)
    steps: int = Field(100, ge=1)
    lr: float = Field(1e-3, gt=0)
    seed: int = 0


RANK = 16
"""Of a LoRA that is learned, if nobody says."""

TOGETHER = 8
"""Questions of a lesson."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """Questions with what the teacher says to them.

    Args:
        state: Run to the lowest edited layer, with the teacher's answers as targets.
        positions: ``[B, S]`` bool, where these are predicted.
        logits: ``[n, V]``, the teacher's there.
    """

    state: SplitState
    positions: Tensor
    logits: Tensor


def lowest_layer(model: EditedModel) -> int:
    """The lowest layer that an edit changes; 0 if a method cannot tell."""
    found = []
    for edit in model.edits:
        try:
            editor = registry.editors.get(edit.editor)(config=edit.config)
            found.append(editor.lowest_layer(model.backbone) or 0)
        except UnikeError:  # its network is not here, which an edit does not need
            found.append(0)
    return min(found)


def taught(
    model: EditedModel, asked: Sequence[Asked], layer: int, room: int, seed: int, progress: Progress = silent
) -> list[list[Lesson]]:
    """Lessons of each kind of business: about the facts, near them, unrelated; in batches, in an order by the seed."""
    unedited = EditedModel(model.backbone)
    groups = [
        (model, [each for each in asked if each.kind.about]),
        (model, [each for each in asked if not each.kind.about and each.kind is not UNRELATED]),
        (unedited, [each for each in asked if each.kind is UNRELATED]),
    ]
    names = ("lessons of the fact", "lessons near it", "lessons of what is unrelated")
    found = []
    for (teacher, own), name in zip(groups, names, strict=True):
        said = answers(teacher, own, room, name, progress)
        queries = [
            replace(each.query, target=answer, also=()) for each, answer in zip(own, said, strict=True) if answer
        ]
        found.append([lesson(teacher, part, layer) for part in batches(queries, seed)])
    return [each for each in found if each]


def batches(queries: Sequence[Query], seed: int) -> list[list[Query]]:
    """Shuffled, and those with and without pictures apart, which some families cannot mix."""
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [queries[index] for index in order]
    found = []
    for with_picture in (True, False):
        alike = [query for query in shuffled if (query.image is not None) is with_picture]
        found += [alike[start : start + TOGETHER] for start in range(0, len(alike), TOGETHER)]
    return found


@torch.no_grad()
def lesson(teacher: EditedModel, queries: Sequence[Query], layer: int) -> Lesson:
    """Questions as the teacher answers them."""
    backbone = teacher.backbone
    state = backbone.run_to_split(backbone.encode(queries), layer, UNEDITED)
    return Lesson(state, target_positions(state.labels), teacher.target_logits(queries, state))


def maps_from(backbone: Backbone, layer: int) -> list[nn.Linear]:
    """The linear maps of attention and feed-forward networks from a layer upwards."""
    found: list[nn.Linear] = []
    for index in range(layer, backbone.n_layers):
        site = backbone.attention(index)
        found += [site.q_proj, site.k_proj, site.v_proj, site.o_proj, *backbone.ffn(index).matrices.values()]
    return list({id(linear): linear for linear in found}.values())


def distilled(
    backbone: Backbone, groups: Sequence[Sequence[Lesson]], layer: int, recipe: Recipe, progress: Progress = silent
) -> tuple[list[Factors], float]:
    """Learn a LoRA; the model is left as it was.

    Args:
        backbone: The model.
        groups: Lessons; each step takes one of each group in turn.
        layer: The lowest that the LoRA is on.
        recipe: How.
        progress: Told how many steps are taken.

    Returns:
        Its factors, and the mean divergence of the last round through the lessons, in nats a token.
    """
    turns = [cycle(lessons) for lessons in groups]
    losses: list[float] = []
    with (
        lora_on(backbone, maps_from(backbone, layer), recipe.rank or RANK, recipe.seed) as (_, layers),
        torch.enable_grad(),
    ):
        weights = [part[ADAPTER].weight for each in layers for part in (each.lora_A, each.lora_B)]
        adam = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=0.0)
        falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / recipe.steps)
        for step in range(recipe.steps):
            progress("learning the LoRA", step, recipe.steps)
            adam.zero_grad()
            loss = torch.stack([divergence(backbone, next(turn)) for turn in turns]).sum()
            loss.backward()
            adam.step()
            falling.step()
            losses.append(float(loss.detach()) / len(turns))
        progress("learning the LoRA", recipe.steps, recipe.steps)
        maps = [each.get_base_layer() for each in layers]
        pairs = [(each.lora_A[ADAPTER].weight.detach(), each.lora_B[ADAPTER].weight.detach().T) for each in layers]
    last = losses[-max(map(len, groups)) :]
    return [Factors(linear, *pair) for linear, pair in zip(maps, pairs, strict=True)], sum(last) / len(last)


def divergence(backbone: Backbone, lesson: Lesson) -> Tensor:
    """``KL(teacher || student)``, the mean over answer tokens."""
    return kl(lesson.logits, backbone.run_from_split(lesson.state, lesson.positions, UNEDITED)).mean()
