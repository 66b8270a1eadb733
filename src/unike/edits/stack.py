"""A stack of edits: what they do together in a pass, and how they are attached.

What a stack does depends on which edits are in it, in which order, not on how it came about. So a stack without one of
its edits is, bit for bit, the stack of the others.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unike.backbones.adapter import Backbone
from unike.backbones.decoding import Decoding
from unike.backbones.forward import context
from unike.backbones.forward.context import UNEDITED, Prefill
from unike.backbones.forward.hooks import Args, Hooks, Kwargs, text_input
from unike.data.queries import Query
from unike.edits.conflicts import in_force
from unike.edits.edit import Edit, EditorConfig, alike
from unike.edits.given import given_edits, given_model
from unike.edits.group import Group
from unike.edits.layout import check_widths
from unike.edits.native import in_the_models_own_calls
from unike.edits.tensors import joined_rows

Kind = tuple[type[Edit], EditorConfig]


class Stack:
    """Edits that act together; those of one method and config as one `Group`.

    Of several about the very same question the newest acts, see `conflicts`.

    Args:
        backbone: The model.
        edits: Oldest first.

    Raises:
        UnikeError: An edit was made for another backbone.
    """

    def __init__(self, backbone: Backbone, edits: Sequence[Edit]) -> None:
        check_fit(backbone, edits)
        self.edits = tuple(in_force(edits))
        self.groups = checked(Group(backbone, alike) for alike in _by_kind(self.edits).values())

    @classmethod
    def of_rows(cls, backbone: Backbone, sets: Sequence[Sequence[Edit]]) -> "Stack":
        """A stack in which each row of a batch sees edits of its own.

        Args:
            backbone: The model.
            sets: For each of B rows its edits, oldest first; each edit is of one fact.

        Raises:
            UnikeError: As `Stack`.
        """
        check_fit(backbone, [edit for edits in sets for edit in edits])
        stack = cls(backbone, [])
        stack.groups = checked(_columns(backbone, alike) for alike in _in_turn([in_force(edits) for edits in sets]))
        stack.edits = tuple(edit for group in stack.groups for edit in group.made)
        return stack

    @property
    def rows(self) -> int:
        """How many rows are told apart."""
        return math.lcm(*(group.rows for group in self.groups))

    def install(self, backbone: Backbone, hooks: Hooks, prefill: Prefill) -> None:
        """Put the hooks of all edits on the backbone for one pass."""
        hooks.add_pre(backbone.text_stack, self._check_rows)
        for group in self.groups:
            type(group.made[0]).install_group(group, hooks, prefill)

    def told(self, queries: Sequence[Query]) -> list[Query | None]:
        """Queries as the unedited model is to be asked in place of the edited one, see `Edit.told`; None for others.

        None at all beside edits of another method or other settings, for they may have something to say about it.
        """
        for group in self.groups:
            group.check_rows(len(queries))
        if len(self.groups) != 1:
            return [None] * len(queries)
        (group,) = self.groups
        return type(group.made[0]).told(group, queries)

    def answer(
        self,
        backbone: Backbone,
        queries: Sequence[Query],
        *,
        decoding: Sequence[Decoding] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """What the model answers under the stack, or by itself to what it is to be asked instead (`told`).

        Args:
            backbone: The model.
            queries: Any mix.
            decoding: As in `Backbone.generate`.
            **kwargs: As in `Backbone.generate`.
        """
        told = dict(enumerate(self.told(queries)))
        instead = {row: query for row, query in told.items() if query is not None}
        # Rows of a batch of edits go by their place, so none can be left out.
        asked = {row: queries[row] for row in told if row not in instead or self.rows > 1}
        answers: dict[int, str] = {}
        for put, acting, heard in ((asked, self, told.keys() - instead.keys()), (instead, UNEDITED, instead.keys())):
            chosen = kwargs
            if decoding is not None:
                written = [decoding[row] if row in heard else Decoding(max_new_tokens=1) for row in put]
                chosen = kwargs | {"decoding": written}
            answers |= zip(put, backbone.generate(list(put.values()), acting=acting, **chosen), strict=True)
        return [answers[row] for row in range(len(queries))]

    def _check_rows(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Here and not at the layers: OPT flattens rows and positions, and any number of them would seem to fit."""
        rows = len(text_input(args, kwargs))
        for group in self.groups:
            group.check_rows(rows)


def checked(groups: Iterable[Group]) -> list[Group]:
    """Groups that can act.

    Raises:
        UnikeError: As `Edit.check_group`.
    """
    found = list(groups)
    for group in found:
        type(group.made[0]).check_group(group)
    return found


def check_fit(backbone: Backbone, edits: Sequence[Edit]) -> None:
    """Refuse edits of another backbone.

    Raises:
        UnikeError: With both models' names.
    """
    kinds = alike(edits)
    for edit in {common.fingerprint: edit for common, edit in kinds.items()}.values():
        edit.check_fits(backbone)
    for edit in kinds.values():
        check_widths(edit, backbone)


def _by_kind(edits: Sequence[Edit]) -> dict[Kind, list[Edit]]:
    """Edits of one method and config together, in the order of the oldest of each."""
    kind_of = {common: (common.kind, common.config) for common in alike(edits)}
    if len(set(kind_of.values())) == 1:
        return {next(iter(kind_of.values())): list(edits)}
    kinds: dict[Kind, list[Edit]] = {}
    for edit in edits:
        kinds.setdefault(kind_of[edit.common], []).append(edit)
    return kinds


def _in_turn(sets: Sequence[Sequence[Edit]]) -> list[list[list[Edit]]]:
    """What acts one after the other: each time edits of one kind, for each row its own or none.

    The kinds of every row come in its own order; rows that agree about that share a turn.
    """
    turns: list[tuple[Kind, list[list[Edit]]]] = []
    for row, edits in enumerate(sets):
        at = 0
        for kind, own in _by_kind(edits).items():
            later = (number for number in range(at, len(turns)) if turns[number][0] == kind)
            turn = next(later, None)
            if turn is None:
                turn = at
                turns.insert(turn, (kind, [[] for _ in sets]))
            turns[turn][1][row] = own
            at = turn + 1
    return [of_rows for _, of_rows in turns]


def _columns(backbone: Backbone, sets: Sequence[Sequence[Edit]]) -> Group:
    """Edits of one kind for each row, as G edits of B rows each; where a row has fewer, zeros fill up."""
    count = max(map(len, sets))
    present = torch.tensor([[number < len(edits) for number in range(count)] for edits in sets])
    some = next(edit for edits in sets for edit in edits)
    rows = ([edits[n] if n < len(edits) else None for edits in sets] for n in range(count))
    columns = [joined(row[0] or some, row) for row in rows]
    return Group(backbone, columns, None if present.all() else present, rows=len(sets))


def joined(some: Edit, rows: Sequence[Edit | None]) -> Edit:
    """One edit of B rows of single ones of the same kind; a row without one, and what another is smaller by, is zeros.

    One that all rows have serves them as it is.

    Args:
        some: Any edit of that kind.
        rows: B of them.
    """
    if all(edit is some for edit in rows):
        return some
    on_demand = bool(some.standing(some.config))
    tensors = joined_rows([None if edit is None else edit.tensors for edit in rows], on_demand=on_demand)
    return some.like(tensors, [some.facts[0] if edit is None else edit.facts[0] for edit in rows])


# ---------------------------------------------------------------------- attaching


@dataclass(frozen=True, eq=False)
class _Block:
    """One ``with attached(...)`` block; told from others by identity."""

    edits: tuple[Edit, ...]


class _Attached(Stack):
    """What several blocks attach together."""

    def __init__(self, backbone: Backbone, blocks: Sequence[_Block]) -> None:
        super().__init__(backbone, [edit for block in blocks for edit in block.edits])
        self.blocks = tuple(blocks)


@contextmanager
def attached(backbone: Backbone, edits: Sequence[Edit]) -> Iterator[None]:
    """Attach edits, oldest first, on top of those that are attached; leaving the block takes them off again.

    They act in this context alone (this thread, this asyncio task): in the backbone's own methods, and in the
    ``generate`` and ``forward`` of its ``transformers`` model. Blocks may be left in any order.

    Raises:
        UnikeError: An edit was made for another backbone; within the block, the model runs on rows that cannot be
            shared out evenly among the edits; or a method does not act within the model, see `RoutingEdit`.
    """
    given_model(backbone)
    block = _Block(tuple(given_edits(edits)))  # the caller's may grow within the block
    if not block.edits:
        yield
        return
    for edit in alike(block.edits).values():
        edit.check_attachable()
    context.attach(backbone, _Attached(backbone, [*blocks_on(backbone), block]))
    try:
        with in_the_models_own_calls(backbone, lambda: blocks_on(backbone)[-1:] == (block,)):
            yield
    finally:
        left = [other for other in blocks_on(backbone) if other is not block]
        context.attach(backbone, _Attached(backbone, left) if left else None)


def blocks_on(backbone: Backbone) -> tuple[_Block, ...]:
    """The blocks that this context is within, the innermost last."""
    found = context.attached_to(backbone)
    return found.blocks if isinstance(found, _Attached) else ()


@contextmanager
def superseding(backbone: Backbone, facts: Sequence[Query]) -> Iterator[None]:
    """Within the block, of what is attached in this context, what facts to come will supersede does not act."""
    before = context.attached_to(backbone)
    left = in_force(edits_on(backbone), newer=facts)
    if len(left) == len(edits_on(backbone)):
        yield
        return
    context.attach(backbone, Stack(backbone, left))
    try:
        yield
    finally:
        context.attach(backbone, before)


def edits_on(backbone: Backbone) -> tuple[Edit, ...]:
    """What is attached to a backbone in this context, oldest first."""
    found = context.attached_to(backbone)
    return found.edits if isinstance(found, Stack) else ()
