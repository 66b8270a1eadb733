"""What a backbone makes of queries, and a forward pass stopped on the way.

Shapes are written with one legend everywhere:

====  ==================================================
B     rows of a batch (independent queries)
S     positions of the padded sequence
D     width of the residual stream
F     width of the feed-forward network
N     key-value pairs of one patch
V     vocabulary
M     entries of a memory
K     entries retrieved from it
====  ==================================================

A `Batch` holds the tensors a backbone made of queries, a `SplitState` the frozen part of a forward pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from unike.backbones.forward.context import Prefill, Tokens

IGNORE = -100
"""The label of every position that is not part of a target."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Queries as one backbone reads them.

    Args:
        inputs: Keyword arguments of the model: ``input_ids`` and ``attention_mask`` ``[B, S]``, the images' tensors.
        labels: ``[B, S]`` long, the target's tokens at their own positions, `IGNORE` elsewhere.
        prompt_last: ``[B]`` long, index of the last prompt token ``p``, never of an answer token.
        tokens: As in `Prefill`.
        shown: ``[B, S]`` bool, where visual features stand; None where there are none.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    prompt_last: Tensor
    tokens: Tokens
    shown: Tensor | None = None

    def __len__(self) -> int:
        """B."""
        return self.labels.shape[0]

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        return replace(
            self,
            inputs={key: value.to(device) for key, value in self.inputs.items()},
            labels=self.labels.to(device),
            prompt_last=self.prompt_last.to(device),
            shown=None if self.shown is None else self.shown.to(device),
        )

    def prefill(self) -> "Prefill":
        """A reading of its prompts."""
        return Prefill(self.prompt_last, self.tokens, self.shown)


@dataclass(frozen=True, eq=False)
class SplitState:
    """A forward pass stopped in front of a decoder layer, ready to be finished any number of times.

    Args:
        layer: The layer that comes next, counted from 0.
        hidden: ``[B, S, D]``, that layer's input.
        args: Positional arguments the text stack was called with.
        kwargs: Keyword arguments the text stack was called with: embeddings, masks, positions.
        labels: As in `Batch`.
        prompt_last: As in `Batch`.
        tokens: As in `Batch`.
        pictures: What the prompts show, see `seen_in`; None for no picture.
        start: Position that ``hidden``, ``labels`` and ``prompt_last`` begin at; above 0 in a state from
            `Backbone.shorten`.
        past: Keys and values ``[B, heads, start, head_dim]`` of what comes before, for layers from ``layer`` on.

    All tensors are detached: no gradient reaches below ``layer``.
    """

    layer: int
    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor
    prompt_last: Tensor
    tokens: Tokens
    pictures: Tensor | None = None
    start: int = 0
    past: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        """B."""
        return self.hidden.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory of its tensors, in bytes."""
        return sum(tensor.nbytes for f in fields(self) for tensor in _tensors(getattr(self, f.name)))

    def prefill(self) -> "Prefill":
        """The reading of its prompts, to be gone on with."""
        return Prefill(self.prompt_last, self.tokens, pictures=self.pictures)

    def since(self, start: int, past: dict[int, tuple[Tensor, Tensor]]) -> Self:
        """What is left of a whole state when everything before a position is in ``past``.

        Raises:
            NotImplementedError: The text stack was given a tensor whose position dimension is not known.
        """
        if self.start or self.args:
            raise NotImplementedError("cannot shorten a state twice, or a text stack's positional arguments")
        return replace(
            self,
            hidden=self.hidden[:, start:].clone(),  # or all that is before stays in memory
            kwargs=_since(self.kwargs, start),
            labels=self.labels[:, start:],
            prompt_last=self.prompt_last - start,
            start=start,
            past=past,
        )

    def detach(self) -> Self:
        """The same state with every tensor cut from the graph that made it."""
        return replace(self, **{f.name: _map_tensors(getattr(self, f.name), Tensor.detach) for f in fields(self)})

    def expand(self, rows: Sequence[int] | Tensor) -> Self:
        """The state of the given rows, in that order; a row may come several times.

        Args:
            rows: Indices into the batch, for example ``[0, 0, 2]``.

        Raises:
            NotImplementedError: The text stack was given a tensor whose batch dimension is not known.
        """
        index = torch.as_tensor(rows, dtype=torch.long, device=self.hidden.device)
        if self.args:
            raise NotImplementedError("cannot pick rows of a text stack's positional arguments")
        return replace(
            self,
            hidden=self.hidden[index],
            kwargs=_pick_rows(self.kwargs, len(self), index),
            labels=self.labels[index],
            prompt_last=self.prompt_last[index],
            tokens=tuple(self.tokens[row] for row in index.tolist()),
            pictures=None if self.pictures is None else self.pictures[index],
            past={layer: (keys[index], values[index]) for layer, (keys, values) in self.past.items()},
        )


def _map_tensors(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_map_tensors(item, function) for item in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _since(kwargs: dict[str, Any], start: int) -> dict[str, Any]:
    """A text stack's keyword arguments without the positions before ``start``, which its cache will hold."""
    rest: dict[str, Any] = {}
    for key, value in kwargs.items():
        if key == "deepstack_visual_embeds" and value is not None:
            # One row per visual token of the whole batch; those of a row come in the order of its positions.
            kept = kwargs["visual_pos_masks"].nonzero()[:, 1] >= start
            rest[key] = [feature[kept] for feature in value]
        elif key == "attention_mask":
            rest[key] = _mask_since(value, start)
        elif not isinstance(value, Tensor):
            rest[key] = value
        elif key in ("input_ids", "inputs_embeds", "visual_pos_masks", "token_type_ids"):
            rest[key] = value[:, start:].clone()
        elif key == "position_ids":  # [B, S] or [3 or 4, B, S]
            rest[key] = value[..., start:]
        else:
            raise NotImplementedError(f"cannot shorten the text stack's argument {key!r}")
    return rest


def _mask_since(mask: Any, start: int) -> Any:
    """A mask of what is left to run. Keys that a cache will hold are still seen, so only queries are left out.

    Args:
        mask: ``[B, S]`` or None, of which the stack makes its own; or made already, ``[B or 1, 1, S, S]``, perhaps one
            for each kind of layer.
        start: The first query that is left.

    Raises:
        NotImplementedError: A kind of layer has no mask: its attention is causal, and would count from the first query.
    """
    if isinstance(mask, dict):
        if None in mask.values():
            raise NotImplementedError("cannot shorten a text stack that was given no mask for some layers")
        return {kind: _mask_since(each, start) for kind, each in mask.items()}
    return mask[:, :, start:] if isinstance(mask, Tensor) and mask.ndim == 4 else mask


def _pick_rows(kwargs: dict[str, Any], batch: int, index: Tensor) -> dict[str, Any]:
    """Rows of a text stack's keyword arguments, by their names: sizes alone cannot tell B from S."""
    picked: dict[str, Any] = {}
    for key, value in kwargs.items():
        if key == "deepstack_visual_embeds" and value is not None:
            # One row per visual token of the whole batch, in the order of `visual_pos_masks`.
            sizes = kwargs["visual_pos_masks"].sum(dim=-1).tolist()
            picked[key] = [torch.cat([feature.split(sizes)[row] for row in index.tolist()]) for feature in value]
        elif key == "attention_mask" and isinstance(value, dict):  # one for each kind of layer
            picked[key] = {kind: _pick_rows({key: mask}, batch, index)[key] for kind, mask in value.items()}
        elif not isinstance(value, Tensor):
            picked[key] = value
        elif key == "position_ids" and value.ndim == 3:  # [3 or 4, B, S], multimodal rotary positions
            picked[key] = value[:, index] if value.shape[1] == batch else value
        elif key in (
            "input_ids",
            "inputs_embeds",
            "attention_mask",
            "position_ids",
            "visual_pos_masks",
            "token_type_ids",
        ):
            picked[key] = value[index] if value.shape[0] == batch else value  # one row may serve all
        else:
            raise NotImplementedError(f"cannot pick rows of the text stack's argument {key!r}")
    return picked
