"""The bytes of an edit's tensors: copies are kept once, and numbers in half the bytes where nothing is lost.

An edit has as many pairs as its settings say, and an answer fewer tokens: most pairs, and most entries of a memory, are
copies of one another. Of those a file has the first, and which row is a copy of which (`COPIES`).
"""

from collections.abc import Mapping

import torch
from safetensors.torch import load, save
from torch import Tensor

from unike.backbones.forward.functional import distinct
from unike.edits.tensors import packed

COPIES = "/copies"
"""What follows a tensor's name in that of the numbers of its rows."""

MOST = 1024
"""Rows that may be copies of one another: a small file is not to become a large tensor."""


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a file keeps them."""
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = packed(tensor.cpu())
        rows, kinds = distinct(whole.transpose(0, 1)) if whole.ndim > 2 and whole.shape[1] <= MOST else ([], [])
        if len(rows) < len(kinds):
            kept |= {name: whole[:, rows].contiguous(), name + COPIES: torch.tensor(kinds, dtype=torch.int16)}
        else:
            kept[name] = whole
    return save(kept)


def from_bytes(content: bytes) -> dict[str, Tensor]:
    """The reverse, but for `packed`.

    Raises:
        ValueError: Rows are copies of none.
        SafetensorError: There are no tensors.
    """
    tensors = load(content)
    for name in [name for name in tensors if name.endswith(COPIES)]:
        kinds, of = tensors.pop(name), name.removesuffix(COPIES)
        if kinds.dtype != torch.int16 or kinds.ndim != 1 or len(kinds) > MOST:
            raise ValueError(f"{name} does not number up to {MOST} rows")
        if of not in tensors or tensors[of].ndim < 2 or not ((kinds >= 0) & (kinds < tensors[of].shape[1])).all():
            raise ValueError(f"{name} numbers rows that there are not")
        tensors[of] = tensors[of][:, kinds.long()]
    return tensors
