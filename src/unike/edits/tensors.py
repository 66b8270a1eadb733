"""Tensors of an edit that are made when they are asked for, and what is known of them before."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    """What is known of a tensor without reading it.

    Args:
        shape: Its sizes.
        dtype: Of its numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


class Described:
    """The names of an edit's tensors with their sizes; the same object for all edits that are alike in that.

    Args:
        sizes: By name, in the order of the names.
    """

    def __init__(self, sizes: Mapping[str, Size]) -> None:
        self.sizes = dict(sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        return described_as, (self.sizes,)


_DESCRIBED: WeakValueDictionary[tuple[tuple[str, Size], ...], Described] = WeakValueDictionary()
_LOCK = Lock()


def described_as(sizes: Mapping[str, Size]) -> Described:
    """The description that says this."""
    with _LOCK:
        key = tuple(sorted(sizes.items(), key=lambda item: item[0]))
        return _DESCRIBED.setdefault(key, Described(dict(key)))


class OnDemand(Mapping[str, Tensor]):
    """Tensors by name, each made anew whenever it is asked for.

    Args:
        sizes: Of all of them.
        make: From a name to its tensor; may raise a `UnikeError`.
        device: Where it puts them.
    """

    __slots__ = ("described", "device", "make")

    def __init__(
        self, sizes: Mapping[str, Size], make: Callable[[str], Tensor], device: torch.device | None = None
    ) -> None:
        self.described, self.make = described_as(sizes), make
        self.device = device or torch.device("cpu")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.described.sizes:
            raise KeyError(name)
        return self.make(name)

    def __contains__(self, name: object) -> bool:
        return name in self.described.sizes

    def __iter__(self) -> Iterator[str]:
        return iter(self.described.sizes)

    def __len__(self) -> int:
        return len(self.described.sizes)


def described(tensors: Mapping[str, Tensor]) -> Described:
    """What tensors there are; nothing is read."""
    if isinstance(tensors, OnDemand):
        return tensors.described
    return described_as({name: Size(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()})


def device_of(tensors: Mapping[str, Tensor]) -> torch.device:
    """Where the first of some tensors is; nothing is read."""
    if isinstance(tensors, OnDemand):
        return tensors.device
    return next((tensor.device for tensor in tensors.values()), torch.device("cpu"))


def are_on(tensors: Mapping[str, Tensor], device: torch.device) -> bool:
    """Whether all are on a device; nothing is read."""
    if isinstance(tensors, OnDemand):
        return tensors.device == device
    return all(tensor.device == device for tensor in tensors.values())


# ---------------------------------------------------------------------- tensors made of others


def rows_of(tensors: Mapping[str, Tensor], rows: Sequence[int]) -> Mapping[str, Tensor]:
    """Some rows of tensors ``[B, ...]``: read when they are asked for if those are."""
    index = list(rows)
    if not isinstance(tensors, OnDemand):
        return {name: tensor[index] for name, tensor in tensors.items()}
    sizes = {name: Size((len(index), *size.shape[1:]), size.dtype) for name, size in tensors.described.sizes.items()}
    return OnDemand(sizes, _Rows(tensors, index), tensors.device)


def moved(tensors: Mapping[str, Tensor], device: torch.device) -> Mapping[str, Tensor]:
    """Tensors on another device: moved when they are asked for if they are read then."""
    if not isinstance(tensors, OnDemand):
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    return OnDemand(tensors.described.sizes, _Moved(tensors, device), device)


def joined_rows(rows: Sequence[Mapping[str, Tensor] | None], *, on_demand: bool) -> Mapping[str, Tensor]:
    """Single rows ``[1, ...]`` as one ``[B, ...]``; what is missing, or smaller than in another row, is zeros.

    Args:
        rows: B of them, of which at least one is there.
        on_demand: Whether a tensor is made when it is asked for, and not before.
    """
    given = [each for each in rows if each is not None]
    known = [each.sizes for each in dict.fromkeys(map(described, given))]
    sizes: dict[str, Size] = {}
    for name in dict.fromkeys(name for each in known for name in each):
        parts = [each[name] for each in known if name in each]
        widest = (max(lengths) for lengths in zip(*(part.shape[1:] for part in parts), strict=True))
        sizes[name] = Size((len(rows), *widest), parts[0].dtype)
    device = device_of(given[0])
    make = _Joined(tuple(rows), sizes, device)
    return OnDemand(sizes, make, device) if on_demand else {name: make(name) for name in sizes}


@dataclass(frozen=True, eq=False)
class _Rows:
    tensors: Mapping[str, Tensor]
    index: list[int]

    def __call__(self, name: str) -> Tensor:
        return self.tensors[name][self.index]


@dataclass(frozen=True, eq=False)
class _Moved:
    tensors: Mapping[str, Tensor]
    device: torch.device

    def __call__(self, name: str) -> Tensor:
        return self.tensors[name].to(self.device)


@dataclass(frozen=True, eq=False)
class _Joined:
    rows: tuple[Mapping[str, Tensor] | None, ...]
    sizes: Mapping[str, Size]
    device: torch.device

    def __call__(self, name: str) -> Tensor:
        together = torch.zeros(self.sizes[name].shape, dtype=self.sizes[name].dtype, device=self.device)
        for row, each in enumerate(self.rows):
            if each is not None and name in each:
                part = each[name][0]
                together[row][tuple(slice(length) for length in part.shape)] = part
        return together


# ---------------------------------------------------------------------- in half the bytes


def packed(tensor: Tensor) -> Tensor:
    """In half the bytes, where nothing is lost."""
    half = tensor.bfloat16()
    return half if tensor.dtype == torch.float32 and torch.equal(half.float(), tensor) else tensor


def unpacked(tensor: Tensor) -> Tensor:
    """The reverse: edits are computed with in float32."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
