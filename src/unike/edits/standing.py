"""What every pass compares its inputs with, of all edits of a group: side by side, in blocks.

It is kept in half the bytes, where nothing is lost.

A stack that has one edit more than another, or one less, has nearly the same rows, so it takes over what that one has:
whole blocks as they are, others by copying rows. A block always begins at a multiple of its size. So what is computed
with blocks, and how it is rounded, follows from which edits there are in which order, not from how a stack came about.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import repeat
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from unike.edits.edit import Edit, alike
from unike.edits.saved import stand_at
from unike.edits.tensors import packed

T = TypeVar("T")

BLOCK = 1024
"""Edits of a block: few enough that one more costs little to copy, and enough for one product of matrices."""


class Block:
    """Tensors of some edits next to each other; not to be changed.

    Args:
        tensors: By name, ``[b, g, n]``, with b the rows that these edits tell apart. One that no edit has is missing;
            of edits without one that others have, zeros.
        size: g.
    """

    def __init__(self, tensors: Mapping[str, Tensor], size: int) -> None:
        self.tensors, self.size = tensors, size
        self._made: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        """How many edits, g."""
        return self.size

    def once(self, key: Hashable, make: Callable[["Block"], T]) -> T:
        """What ``make`` returned for the block when this was first asked for."""
        if key not in self._made:
            self._made[key] = make(self)
        made: T = self._made[key]
        return made

    def for_rows(self, rows: int) -> "Block":
        """The same for more rows, or for fewer of which as many as there are more are alike."""

        def of(tensor: Tensor) -> Tensor:
            if len(tensor) > rows:
                return tensor[:: len(tensor) // rows]
            return tensor if len(tensor) == rows else tensor.repeat_interleave(rows // len(tensor), dim=0)

        if all(len(tensor) == rows for tensor in self.tensors.values()):
            return self
        return Block({name: of(tensor) for name, tensor in self.tensors.items()}, self.size)

    def part(self, start: int, end: int) -> "Block":
        """Some of the edits that follow one another."""
        return Block({name: tensor[:, start:end].contiguous() for name, tensor in self.tensors.items()}, end - start)


class Blocks(Sequence[Block]):
    """Blocks of the edits of a group.

    Args:
        edits: G of them, of one kind.
        names: Of the tensors, ``[B, 1, n]`` or ``[B, n]`` each.
        device: Where the blocks are.
    """

    def __init__(self, edits: Sequence[Edit], names: tuple[str, ...], device: torch.device) -> None:
        self.edits, self.kind = edits, (names, device)
        former = akin(self)
        places = np.full(len(edits), -1) if former is None else former.places_of(edits)
        self._blocks: list[Block] = []
        for start in range(0, len(edits), BLOCK):
            end = start + BLOCK
            self._blocks.append(self._taken_over(former, places[start:end], edits[start:end]))
        with _LOCK:
            _ALIVE.add(self)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __getitem__(self, number: Any) -> Any:
        return self._blocks[number]

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def places_of(self, edits: Sequence[Edit]) -> np.ndarray[Any, Any]:
        """Where edits stand here, ``[len(edits)]``; -1 for those that do not."""
        known: dict[Edit, int] = dict(zip(self.edits, range(len(self.edits)), strict=True))
        return np.fromiter(map(known.get, edits, repeat(-1)), dtype=np.int64, count=len(edits))

    def _taken_over(self, former: "Blocks | None", places: np.ndarray[Any, Any], edits: Sequence[Edit]) -> Block:
        """A block of edits, of which those stand in a former stack that have a place there."""
        pieces: list[Block] = []
        at = 0
        for run in runs_of(places):
            if former is None or run[0] < 0:
                pieces.append(self._read(edits[at : at + len(run)]))
            else:
                pieces += former.between(int(run[0]), int(run[-1]) + 1)
            at += len(run)
        rows = math.lcm(*(common.rows for common in alike(edits)))
        pieces = [piece.for_rows(rows) for piece in pieces]
        block = pieces[0] if len(pieces) == 1 else side_by_side(pieces)
        if rows == 1 and self.kind[1].type == "cpu":
            for number, edit in enumerate(edits):
                stand_at(edit.tensors, block.tensors, number)
        return block

    def between(self, start: int, end: int) -> list[Block]:
        """Those that stand from one place to another; a block of which all are wanted is given itself."""
        found = []
        while start < end:
            block, first = self._blocks[start // BLOCK], start % BLOCK
            last = min(first + end - start, len(block))
            found.append(block if last - first == len(block) else block.part(first, last))
            start += last - first
        return found

    def _read(self, edits: Sequence[Edit]) -> Block:
        names, device = self.kind
        rows = math.lcm(*(common.rows for common in alike(edits)))
        tensors: dict[str, Tensor] = {}
        for name in names:
            parts = [edit.tensors[name].detach() if name in edit.common.described.sizes else None for edit in edits]
            some = next((part for part in parts if part is not None), None)
            if some is None:
                continue
            filled = [some.new_zeros(1, *some.shape[1:]) if part is None else part.to(some.device) for part in parts]
            whole = [part if len(part) == rows else part.repeat_interleave(rows // len(part), dim=0) for part in filled]
            together = torch.stack(whole, dim=1) if some.ndim == 2 else torch.cat(whole, dim=1)
            tensors[name] = packed(together).to(device)
        return Block(tensors, len(edits))


_ALIVE: WeakSet[Blocks] = WeakSet()
_LOCK = Lock()


def akin(blocks: Blocks) -> Blocks | None:
    """Of the stacks that somebody holds the one with the most in common, as far as its ends tell; None for none."""
    first, last, count = blocks.edits[0], blocks.edits[-1], len(blocks.edits)

    def common(other: Blocks) -> tuple[int, int]:
        return (other.edits[0] is first) + (other.edits[-1] is last), -abs(len(other.edits) - count)

    with _LOCK:
        others = [other for other in _ALIVE if other.kind == blocks.kind]
    best = max(others, key=common, default=None)
    return None if best is None or not common(best)[0] else best


def runs_of(places: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Places cut into runs that follow one another, and runs of -1.

    >>> [run.tolist() for run in runs_of(np.array([4, 5, -1, -1, 0]))]
    [[4, 5], [-1, -1], [0]]
    """
    new = places < 0
    goes_on = (new[1:] & new[:-1]) | ((np.diff(places) == 1) & (new[1:] == new[:-1]))
    return np.split(places, np.flatnonzero(~goes_on) + 1)


def side_by_side(pieces: Sequence[Block]) -> Block:
    """One block of several."""
    tensors = {}
    for name in dict.fromkeys(name for piece in pieces for name in piece.tensors):
        some = next(piece.tensors[name] for piece in pieces if name in piece.tensors)
        parts = [
            piece.tensors[name] if name in piece.tensors else some.new_zeros(len(some), len(piece), some.shape[-1])
            for piece in pieces
        ]
        dtype = some.dtype if len({part.dtype for part in parts}) == 1 else torch.float32
        tensors[name] = torch.cat([part.to(dtype) for part in parts], dim=1)
    return Block(tensors, sum(map(len, pieces)))
