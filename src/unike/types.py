"""The values that flow through the library.

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

Nothing here knows a model: a `Query` holds a path and strings, a `Batch` the tensors a backbone made of queries, a
`SplitState` the frozen part of a forward pass, a `Prefill` where the prompts end that a model is reading.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

T = TypeVar("T")

IGNORE = -100
"""The label of every position that is not part of a target."""

PROBE_KINDS = ("t_generality", "m_generality", "t_locality", "m_locality", "portability", "specificity")
"""What a probe of an edit can test."""


@dataclass(frozen=True)
class Query:
    """A question, perhaps about an image, perhaps with the answer it should get.

    Args:
        prompt: The question as the user writes it; the backbone adds its own template.
        image: Path of the image, or None for a question about text alone.
        target: The wanted answer, or None where there is none (locality probes, generation).
    """

    prompt: str
    image: Path | None = None
    target: str | None = None


@dataclass(frozen=True)
class Probe:
    """A query that tests one property of an edit.

    Args:
        kind: One of `PROBE_KINDS`.
        query: What to ask.
    """

    kind: str
    query: Query

    def __post_init__(self) -> None:
        """Refuse a kind that no metric would ever read."""
        if self.kind not in PROBE_KINDS:
            raise ValueError(f"unknown probe kind {self.kind!r} (known: {', '.join(PROBE_KINDS)})")


@dataclass(frozen=True)
class EditCase:
    """One fact to edit and the questions that test the edit.

    Args:
        case_id: Unique within its dataset; results are resumed by it.
        edit: The query whose target the model should give afterwards.
        probes: The tests, in no particular order.
        domain: A tag to group results by, or the empty string.
    """

    case_id: str
    edit: Query
    probes: tuple[Probe, ...]
    domain: str = ""


@dataclass(frozen=True)
class Asked:
    """One question before and after an edit, with what the answer is worth.

    Args:
        kind: ``"reliability"``, or one of `PROBE_KINDS`.
        prompt: The question.
        image: The picture's path below its data set's folder, or None.
        target: The gold answer, or None.
        before: The greedy answer before the first edit.
        after: The greedy answer under the edits.
        scores: ``"protocol/scorer"`` to a value from 0 to 1; None where the method leaves it undefined.
        notes: What the method says about the question, see `Prefill.note`.
    """

    kind: str
    prompt: str
    image: str | None
    target: str | None
    before: str
    after: str
    scores: dict[str, float | None]
    notes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseResult:
    """What one edit did to the questions that test it.

    Args:
        case_id: Of the `EditCase`.
        domain: Of the `EditCase`.
        asked: The edited question first, then the probes.
        edit_seconds: Making the edit took so long; edits made in one pass share their time evenly.
        sequence: Number of the sequence it was edited in, None in one-step editing.
        position: The how-manieth edit of its sequence, from 0.
        when: ``"end"`` (after the last edit of the sequence), ``"own"`` (right after this), ``"at-10"`` (after ten).
    """

    case_id: str
    domain: str
    asked: tuple[Asked, ...]
    edit_seconds: float
    sequence: int | None = None
    position: int = 0
    when: str = "end"


@dataclass(frozen=True, eq=False)
class Batch:
    """Queries as one backbone reads them.

    Args:
        inputs: Keyword arguments of the model: ``input_ids`` and ``attention_mask`` ``[B, S]``, the images' tensors.
        labels: ``[B, S]`` long, the target's tokens at their own positions, `IGNORE` elsewhere.
        prompt_last: ``[B]`` long, index of the last prompt token ``p``, never of an answer token.
        prompt_length: ``[B]`` long, tokens of the prompt, those of its picture among them.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    prompt_last: Tensor
    prompt_length: Tensor

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
            prompt_length=self.prompt_length.to(device),
        )

    def prefill(self) -> "Prefill":
        """A reading of its prompts."""
        return Prefill(self.prompt_last, self.prompt_length)


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
        prompt_length: As in `Batch`.
        kept: What hooks below ``layer`` worked out from the prompts, see `Prefill.once`.
        start: Position that ``hidden``, ``labels`` and ``prompt_last`` begin at; above 0 in a state from
            `Backbone.shorten`.
        past: Keys and values ``[B, heads, start, head_dim]`` of what comes before, for layers from ``layer`` on.
        sums: As in `Prefill`, over what comes before, for the same layers.

    All tensors are detached: no gradient reaches below ``layer``.
    """

    layer: int
    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor
    prompt_last: Tensor
    prompt_length: Tensor
    kept: dict[object, Any] = field(default_factory=dict)
    start: int = 0
    past: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """B."""
        return self.hidden.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory of its tensors, in bytes."""
        return sum(tensor.nbytes for f in fields(self) for tensor in _tensors(getattr(self, f.name)))

    def prefill(self) -> "Prefill":
        """The reading of its prompts, to be gone on with."""
        return Prefill(self.prompt_last, self.prompt_length, dict(self.kept), self.sums)

    def since(self, start: int, past: dict[int, tuple[Tensor, Tensor]], sums: dict[int, Tensor]) -> Self:
        """What is left of a whole state when everything before a position is in ``past`` and ``sums``.

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
            sums=sums,
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
            prompt_length=self.prompt_length[index],
            kept={},  # of other rows
            past={layer: (keys[index], values[index]) for layer, (keys, values) in self.past.items()},
            sums={layer: total[index] for layer, total in self.sums.items()},
        )


@dataclass(frozen=True, eq=False)
class Prefill:
    """One reading of prompts: what hooks may know about the pass they run in.

    A new object for each teacher-forced pass and for each generation, where it stays the same for all tokens. So what
    a hook works out with `once` is worked out from the prompt and holds for every token that follows.

    Args:
        prompt_last: ``[B]`` long, index of the last prompt token ``p`` of each row.
        prompt_length: ``[B]`` long, tokens of each prompt.
        kept: What has been worked out so far, by its owner.
        sums: For layers of a shortened state ``[B, D]`` fp32, the sum of the attention's inputs over the part of the
            prompt that is not run again.
        notes: What hooks have to say about the rows, see `note`.
        passes: Rows and tokens, ``(R, S)``, of each pass so far: the prompts, then token after token of the answers.
    """

    prompt_last: Tensor
    prompt_length: Tensor
    kept: dict[object, Any] = field(default_factory=dict, repr=False)
    sums: dict[int, Tensor] = field(default_factory=dict, repr=False)
    notes: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)
    passes: list[tuple[int, int]] = field(default_factory=list)

    def at_prompt_last(self, hidden: Tensor) -> Tensor:
        """The state at ``p``: ``[R, S, D]`` to ``[R, D]``, where R is B or, with beams, a multiple of it.

        Raises:
            ValueError: R is not a multiple of B.
        """
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, self._for_rows(self.prompt_last, hidden)]

    def over_prompt(self, hidden: Tensor, layer: int) -> Tensor:
        """The mean over the prompt of a layer's attention inputs: ``[R, S, D]`` to ``[R, D]`` fp32.

        Args:
            hidden: Of the prompts, not of an answer's tokens alone.
            layer: Whose, counted from 0.
        """
        total = self.summed(hidden)
        if layer in self.sums:
            total = total + self._for_rows(self.sums[layer], hidden)
        return total / self._for_rows(self.prompt_length, hidden).unsqueeze(1)

    def summed(self, hidden: Tensor) -> Tensor:
        """The sum over those positions that belong to the prompt: ``[R, S, D]`` to ``[R, D]`` fp32."""
        last, length = (self._for_rows(each, hidden).unsqueeze(1) for each in (self.prompt_last, self.prompt_length))
        position = torch.arange(hidden.shape[1], device=hidden.device)
        inside = (position > last - length) & (position <= last)  # [R, S]
        return (inside.float().unsqueeze(1) @ hidden.float()).squeeze(1)

    def _for_rows(self, values: Tensor, hidden: Tensor) -> Tensor:
        """``[B, ...]``, one for each prompt, to ``[R, ...]``, one for each row of ``hidden``, where that is."""
        repeats, rest = divmod(len(hidden), len(values))
        if rest:
            raise ValueError(f"{len(values)} prompts are read, but the model runs on {len(hidden)} rows")
        return values.to(hidden.device).repeat_interleave(repeats, dim=0)

    def from_prompt_last(self, hidden: Tensor) -> Tensor:
        """Which positions of the running pass are not before ``p``.

        Args:
            hidden: ``[R, S, D]``, or flattened to ``[R * S, D]``.

        Returns:
            Bool, ``[R, S, 1]`` or ``[R * S, 1]``.
        """
        rows, length = self.passes[-1]
        if len(self.passes) > 1:  # an answer is continued
            return torch.ones(*hidden.shape[:-1], 1, dtype=torch.bool, device=hidden.device)
        last = self.prompt_last.to(hidden.device).repeat_interleave(rows // len(self.prompt_last))
        since = torch.arange(length, device=hidden.device) >= last.unsqueeze(1)
        return since.reshape(*hidden.shape[:-1], 1)

    def once(self, owner: object, compute: Callable[[], T]) -> T:
        """What ``compute`` returned when this was first called for ``owner`` during this prefill.

        Args:
            owner: Whose value it is, told from others by identity.
            compute: Called the first time only.
        """
        if owner not in self.kept:
            self.kept[owner] = compute()
        kept: T = self.kept[owner]
        return kept

    def note(self, name: str, values: Tensor) -> None:
        """Put down a figure for each row, for reports; several of one name, of several layers, are averaged.

        Args:
            name: For example ``"alpha"``.
            values: ``[R]``.
        """
        self.notes.setdefault(name, []).append(values.detach().float())


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
