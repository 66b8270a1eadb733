"""Edits of one method and one config, as they act together: their tensors side by side."""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.core.errors import UnikeError
from unike.edits.edit import Edit, EditorConfig, alike
from unike.edits.standing import Blocks
from unike.edits.tensors import OnDemand, are_on

T = TypeVar("T")

PARTS = 32
"""So many different parts of a group are kept."""


def on_device(edit: Edit, device: torch.device) -> Edit:
    """The edit, as it is if all of it is there."""
    return edit if are_on(edit.tensors, device) else edit.to(device)


class Group:
    """A part of a stack.

    Args:
        backbone: The model.
        edits: G of them, oldest first; of B independent edits each, or of fewer that serve several rows each.
        present: ``[B, G]`` bool, which of them each row sees; None for all. The tensors of others are zeros.
        rows: B, where it is more than the edits tell apart.
    """

    def __init__(
        self, backbone: Backbone, edits: Sequence[Edit], present: Tensor | None = None, *, rows: int = 1
    ) -> None:
        self.backbone = backbone
        self.made = list(edits)
        self._rows = rows
        self.present = None if present is None else present.to(backbone.device)
        self._made: dict[Hashable, Any] = {}
        self._parts: OrderedDict[tuple[int, ...], Group] = OrderedDict()

    def __len__(self) -> int:
        """G."""
        return len(self.made)

    @cached_property
    def edits(self) -> list[Edit]:
        """All of them on the backbone's device; those that stand by in a large stack are better left where they are."""
        return [on_device(edit, self.backbone.device) for edit in self.made]

    @property
    def config(self) -> Any:
        """The config of all of them."""
        config: EditorConfig = self.made[0].config
        return config

    @cached_property
    def rows(self) -> int:
        """B: the rows that are told apart."""
        return math.lcm(self._rows, *(common.rows for common in alike(self.made)))

    @cached_property
    def is_trained(self) -> bool:
        """Whether tensors change from pass to pass, because the edits are being made."""
        some = (edit for edit in self.made if not isinstance(edit.tensors, OnDemand))
        return any(tensor.requires_grad for edit in some for tensor in edit.tensors.values())

    def check_rows(self, rows: int) -> None:
        """Refuse to act on rows that cannot be shared out evenly among the edits.

        Raises:
            UnikeError: As `Edit.shared_out`, or there are rows with edits of their own, and other rows are asked.
        """
        if rows % self.rows:
            for edit in self.made:
                edit.shared_out(rows)
            raise UnikeError(f"{self.rows} rows have edits of their own, but the model runs on {rows} rows")

    def part(self, numbers: Sequence[int]) -> "Group":
        """Some of the edits, in their order, for the same rows; those that were asked for lately are kept.

        Args:
            numbers: At least one, counted from 0.
        """
        key = tuple(numbers)
        if key not in self._parts:
            present = None if self.present is None else self.present[:, list(key)]
            self._parts[key] = Group(self.backbone, [self.made[number] for number in key], present, rows=self.rows)
            while len(self._parts) > PARTS:
                self._parts.popitem(last=False)
        self._parts.move_to_end(key)
        return self._parts[key]

    def present_on(self, rows: int) -> Tensor | None:
        """`present` of each row that the model runs on, ``[R, G]``: of beams as many in turn for each of B."""
        return None if self.present is None else self.present.repeat_interleave(rows // self.rows, dim=0)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returned when this was first asked for; while tensors are trained, it is made each time."""
        return make() if self.is_trained else self.kept(key, make)

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returned when this was first asked for; it does not depend on the edits' tensors."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def blocks(self, names: tuple[str, ...]) -> Blocks:
        """Tensors of all edits that inputs are compared with; they are never trained."""
        return self.kept(("blocks", names), lambda: Blocks(tuple(self.made), names, self.backbone.device))

    def side_by_side(self, name: str) -> Tensor:
        """A tensor of all edits that have it, ``[B, n, ...]`` each, next to each other: ``[B, G * n, ...]``."""
        return self.once(("side by side", name), lambda: torch.cat(self._for_each_row(name), dim=1))

    def added_up(self, name: str) -> Tensor:
        """The sum of a tensor of all edits that have it, ``[B, ...]``."""

        def add() -> Tensor:
            first, *others = self._for_each_row(name)
            total = first.clone()
            for other in others:
                total += other
            return total

        return self.once(("added up", name), add)

    def _for_each_row(self, name: str) -> list[Tensor]:
        parts = [edit.tensors[name].to(self.backbone.device) for edit in self.made if name in edit.tensors]
        return [p if len(p) == self.rows else p.repeat_interleave(self.rows // len(p), dim=0) for p in parts]
