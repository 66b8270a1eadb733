"""Edits of one method and one config, as they act together: their tensors side by side."""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.edits.edit import Edit, EditorConfig

T = TypeVar("T")


class Group:
    """A part of a stack.

    Args:
        backbone: The model.
        edits: G of them, oldest first; of B independent edits each, or of fewer that serve several rows each.
        present: ``[B, G]`` bool, which of them each row sees; None for all. The tensors of others are zeros.
    """

    def __init__(self, backbone: Backbone, edits: Sequence[Edit], present: Tensor | None = None) -> None:
        self.backbone = backbone
        self.edits = [edit.to(backbone.device) for edit in edits]
        self.present = None if present is None else present.to(backbone.device)
        self._made: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        """G."""
        return len(self.edits)

    @property
    def config(self) -> Any:
        """The config of all of them."""
        config: EditorConfig = self.edits[0].config
        return config

    @cached_property
    def rows(self) -> int:
        """B: the rows that are told apart."""
        return math.lcm(*map(len, self.edits))

    @cached_property
    def is_trained(self) -> bool:
        """Whether tensors change from pass to pass, because the edits are being made."""
        return any(tensor.requires_grad for edit in self.edits for tensor in edit.tensors.values())

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
        parts = [edit.tensors[name] for edit in self.edits if name in edit.tensors]
        return [p if len(p) == self.rows else p.repeat_interleave(self.rows // len(p), dim=0) for p in parts]
