"""How alike an input and the own questions of many edits are: what the gate decides by.

Of each edit, what its own question was read as is kept (`KEPT`), and a pass reads its inputs in the same way. What is
compared is a picture's cosine beyond what is usual, the cosine of what is asked, and, of an edit without a picture, the
share of rare words. Edits of a stack are compared block by block (`unike.edits.standing`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unike.edits.group import Group
from unike.edits.standing import Block, Blocks

GATE_PICTURE, GATE_USUAL, GATE_ASKED = "gate.picture", "gate.usual", "gate.asked"
GATE_SAID, GATE_RARE = "gate.said", "gate.rare"
KEPT = (GATE_PICTURE, GATE_USUAL, GATE_ASKED, GATE_SAID, GATE_RARE)
"""What an edit's own question was read as, ``[B, 1, n]`` each, in the order of `Reading`."""
WORDS = (GATE_SAID, GATE_RARE)
"""Of these, what only an edit without a picture goes by: if all of its facts have one, an edit does without."""


class Reading(NamedTuple):
    """What is compared: of an edit's own question, or of an input."""

    picture: Tensor
    """``[..., P]``, the picture as `Gate.metric` has it, a unit vector; zero without one."""

    usual: Tensor
    """``[..., 1]``, how near arbitrary pictures come to it, see `usual`; zero without one."""

    asked: Tensor
    """``[..., ASKED_WIDTH]``, see `unike.editors.unike.words.Wording`."""

    said: Tensor
    """``[..., NAMED_WIDTH]``, the trigrams of its words, see the same."""

    rare: Tensor
    """``[..., NAMED_WIDTH]``: how much of what is rare in its names lies in each; of an edit without, in its words."""


class Likeness(NamedTuple):
    """How alike G edits' own questions and inputs are, ``[..., G]`` each."""

    pictured: Tensor
    """Whether the edit has a picture."""

    picture: Tensor
    """Of their pictures, see `alike`."""

    asked: Tensor
    """Of what they ask, a cosine."""

    named: Tensor
    """Of whom they name, see `named_alike`; 0 for an edit with a picture."""


def needed(keys: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of what `Gate.keys` gives what is ever compared with: no `WORDS` if all questions have a picture."""
    pictured = bool(keys[GATE_PICTURE].any(dim=-1).all())
    return {name: tensor for name, tensor in keys.items() if not (pictured and name in WORDS)}


NEAREST = 10
"""So many arbitrary pictures say what is usual."""

COMMON = 8.0
"""How much more is usual of a picture for what it is like all arbitrary pictures on average; at most as much again."""

APART = -1.0
"""How alike a picture and none are."""


def usual(pictures: Tensor, cohort: Tensor) -> Tensor:
    """How near arbitrary pictures come to pictures ``[n, P]``: ``[n, 1]``.

    The mean cosine of the nearest; and what is like all of them a little is like much that it has nothing to do with:
    pictures by a hand that nothing was learned from are (hubs, which centring makes fewer: Suzuki et al., 2013).
    """
    near = pictures @ cohort.T
    nearest = near.topk(min(NEAREST, len(cohort)), dim=1).values.mean(dim=1, keepdim=True)
    return nearest + torch.minimum(COMMON * near.mean(dim=1, keepdim=True), nearest).clamp(min=0)


def alike(keys: Reading, read: Reading, pictured: Tensor | None = None) -> Tensor:
    """How alike the pictures of G edits and an input are, ``[..., G]``: their cosine, beyond what is usual for both.

    Flags are like flags; a photograph of a rare thing is like nothing else. So what a cosine says depends on how near
    other pictures come anyway (score normalisation with a cohort, as in telling speakers apart: Auckenthaler et al.,
    2000).
    """
    beyond = _each(keys.picture, read.picture) - (keys.usual.squeeze(-1).float() + read.usual) / 2
    pictured = keys.picture.any(dim=-1) if pictured is None else pictured
    both = pictured & read.picture.any(dim=-1, keepdim=True)
    return beyond.masked_fill(~both, APART)


def named_alike(keys: Reading, read: Reading) -> Tensor:
    """How much of what is rare in the prompts of edits an input says, and they of what it names: the lesser, 0..1."""
    said, known = _each(keys.rare, read.said), _each(keys.said, read.rare)
    return torch.where(read.rare.any(dim=-1, keepdim=True), torch.minimum(said, known), said)


def _each(keys: Tensor, read: Tensor) -> Tensor:
    """Products of ``keys [..., G, n]`` with ``read [..., n]``: ``[..., G]``."""
    if keys.ndim == 3 and len(keys) == 1 and read.ndim == 2:  # one stack for all rows: not a copy for each
        return read.float() @ keys[0].float().T
    return (keys.float() @ read.float().unsqueeze(-1)).squeeze(-1)


# ---------------------------------------------------------------------- of a stack


def blocks_of(group: Group) -> Blocks:
    """What is compared with every input, of all edits of a stack."""
    return group.blocks(type(group.made[0]).standing(group.config))


def keys_of(block: Block) -> Reading:
    """What the edits of a block keep, ``[B, g, n]`` each; where none has words these are of width 0."""
    picture = block.tensors[GATE_PICTURE]
    nothing = picture.new_zeros(*picture.shape[:2], 0)
    return Reading(*(block.tensors.get(name, nothing) for name in KEPT))


def pictured_of(block: Block) -> Tensor:
    """Which edits of a block have a picture, ``[B, g]``."""
    return block.once("pictured", lambda block: keys_of(block).picture.any(dim=-1))


@torch.no_grad()
def likeness_in(group: Group, read: Reading, of_rows: Sequence[int]) -> Likeness:
    """How alike the own questions of a stack's edits and R inputs are, ``[R, G]`` each.

    Args:
        group: Of B rows.
        read: Of the inputs.
        of_rows: For each of them the row of the stack that it belongs to, as `shared_out` says.
    """
    parts = []
    for block in blocks_of(group):
        keys, pictured = keys_of(block), at_rows(pictured_of(block), of_rows, group.rows)
        if len(keys.picture) > 1:  # else all see the same, and there is not a copy for each
            keys = Reading(*(at_rows(key, of_rows, group.rows) for key in keys))
        parts.append(likeness(keys, read, pictured))
    return Likeness(*(torch.cat(column, dim=-1) for column in zip(*parts, strict=True)))


def at_rows(tensor: Tensor, of_rows: Sequence[int], rows: int) -> Tensor:
    """What inputs see of a block's ``[b, ...]``: ``[R, ...]``.

    Args:
        tensor: Of the block.
        of_rows: As in `likeness_in`.
        rows: B, a multiple of b.
    """
    return tensor[[row * len(tensor) // rows for row in of_rows]]


def shared_out(rows: int, inputs: int) -> list[int]:
    """Which of B rows each of R inputs belongs to: as many in turn to each."""
    return [number * rows // inputs for number in range(inputs)]


def likeness(keys: Reading, read: Reading, pictured: Tensor | None = None) -> Likeness:
    """How alike edits' own questions and inputs are.

    Args:
        keys: Of G edits, ``[..., G, n]`` each.
        read: Of the inputs, ``[..., n]`` each.
        pictured: ``[..., G]``, which of the edits have a picture, if that is known.
    """
    pictured = keys.picture.any(dim=-1) if pictured is None else pictured
    picture = alike(keys, read, pictured)
    named = torch.zeros_like(picture)
    if keys.rare.shape[-1] and not pictured.all():
        named = named_alike(keys, read).masked_fill(pictured, 0)
    return Likeness(pictured, picture, _each(keys.asked, read.asked), named)
