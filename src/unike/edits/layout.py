"""What tensors an edit has: declared by its method, and held against what a file says and against a model."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unike.core.errors import UnikeError

if TYPE_CHECKING:
    from unike.backbones.adapter import Backbone
    from unike.edits.edit import Edit

BATCH, WIDTH = "B", "D"
"""Sizes that several methods speak of: facts of the edit, and the width of the decoder."""


@dataclass(frozen=True)
class Declared:
    """What one tensor has to be.

    Args:
        shape: Sizes: a number, or a name that stands for the same size in all tensors of the edit.
        dtype: Of its numbers, all of which are finite.
    """

    shape: tuple[int | str, ...]
    dtype: torch.dtype = torch.float32


Layout = Mapping[str, Declared]


def declared(*shape: int | str, dtype: torch.dtype = torch.float32) -> Declared:
    """One for each fact: ``[B, ...]``."""
    return Declared((BATCH, *shape), dtype)


FINGERPRINT = declared(8, dtype=torch.uint8)
"""Eight bytes that tell what an edit was made with from others."""


def check(layout: Layout, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
    """Refuse tensors that are not what they are declared to be.

    Args:
        layout: The declaration.
        tensors: By name.
        sizes: Those names of sizes that are known.

    Raises:
        ValueError: With the first that is missing, surplus or wrong.
    """
    for name in [*layout, *tensors]:
        if name not in tensors:
            raise ValueError(f"the tensor {name} is missing")
        if name not in layout:
            raise ValueError(f"there is a tensor {name}, which such an edit does not have")
    known = dict(sizes)
    for name, wanted in layout.items():
        tensor = tensors[name]
        if tensor.dtype != wanted.dtype:
            raise ValueError(f"the tensor {name} is {plain(tensor.dtype)}, not {plain(wanted.dtype)}")
        said = f"[{', '.join(map(str, wanted.shape))}]"
        if tensor.dim() != len(wanted.shape):
            raise ValueError(f"the tensor {name} has the shape {list(tensor.shape)}, not {said}")
        for size, dimension in zip(tensor.shape, wanted.shape, strict=True):
            right = dimension if isinstance(dimension, int) else known.setdefault(dimension, size)
            if size != right:
                where = f"{dimension} = {right}" if isinstance(dimension, str) else said
                raise ValueError(f"the tensor {name} has the shape {list(tensor.shape)}, not {said} with {where}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"the tensor {name} is not finite")


def plain(dtype: torch.dtype) -> str:
    """Its name."""
    return str(dtype).removeprefix("torch.")


def check_loaded(edit: "Edit") -> None:
    """Refuse an edit whose tensors are not those that its method makes.

    Raises:
        ValueError: As `check`.
    """
    layout = edit.layout(edit.config, edit.tensors)
    if layout is None:  # a method that does not say: what all have
        for name, tensor in edit.tensors.items():
            if not tensor.dim() or len(tensor) != len(edit):
                raise ValueError(f"the tensor {name} has the shape {list(tensor.shape)}, not [{len(edit)}, ...]")
    else:
        check(layout, edit.tensors, {BATCH: len(edit)})


def check_widths(edit: "Edit", backbone: "Backbone") -> None:
    """Refuse an edit whose tensors do not fit into a model, although it claims to be made for it.

    Raises:
        UnikeError: As it says.
    """
    try:
        known = edit.common.described.sizes
        layout, sizes = edit.layout(edit.config, known), edit.sizes(backbone)
        for name, wanted in (layout or {}).items():
            if name not in known:  # of an edit that was not read from files; its method says what follows
                continue
            shape = known[name].shape
            for size, dimension in zip(shape, wanted.shape, strict=True):
                if isinstance(dimension, str) and size != sizes.get(dimension, size):
                    raise ValueError(
                        f"the tensor {name} has the shape {list(shape)}, and {dimension} is {sizes[dimension]}"
                    )
    except (ValueError, LookupError) as error:
        raise UnikeError(
            f"the edit {edit.facts[0].prompt!r} does not fit {backbone.source!r}: {error}; make it anew"
        ) from None


def matrix_sizes(backbone: "Backbone", layer: int, names: Collection[str], stem: str = "") -> Iterator[tuple[str, int]]:
    """The sizes ``{name}.in`` and ``{name}.out`` of feed-forward matrices of a layer, by their names after a stem.

    Raises:
        ValueError: It has no such matrix.
    """
    matrices: Mapping[str, Any] = backbone.ffn(layer).matrices
    for name in names:
        if name not in matrices:
            raise ValueError(f"layer {layer} has no matrix {name}")
        yield f"{stem}{name}.in", matrices[name].in_features
        yield f"{stem}{name}.out", matrices[name].out_features
