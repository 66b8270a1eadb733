"""Which inputs an edit is about: the memory's relevance as a gate on both halves of an edit (beyond the paper).

An edit's entry in the latent memory has a key, ``h_sem``, the attention's input at the last prompt token ``p``. Two
similarities of an input to that key say whether it is about the edited fact:

- the *centred* cosine, of states minus their mean, is led by the few directions in which states differ most: what is
  asked for. It tells "what is this?" from "is this a photo?" about one picture.
- the *whitened* cosine, of states scaled to unit covariance, hears all directions alike: what the question is about.
  It tells "what is this?" about one thing from the same question about another.

Each becomes a factor, and the gate of a single edit is their product::

    question = ramp(centred),    fact = ramp(whitened),    ramp(s) = clamp((s - low) / (high - low), 0, 1)

In a stack edits compete: two that ask the same about two like things are both near to either's inputs, so each
is scaled by how far it is behind the nearest one, ``compete(s)_g = clamp(1 - (max_j s_j - s_g) / rivalry, 0, 1)``::

    fact_g = ramp(w_g) compete(s)_g,    gate_g = question_g ramp_G(w_g) compete(s)_g,    s = w + 2 o

where ``w`` is the whitened cosine, G the number of edits, and ``o`` how alike the *whole* prompts are (`overall`): the
state at ``p`` is led by the question, while in the mean of the states over the prompt a picture outweighs a wording.
The gate, which is for the edits' own questions, is stricter than ``fact``: an input that is about none of G edits has G
chances to be taken for one, so its ramp rises with G (`RisingRamp`).

Note:
    In the paper relevance scales only what the memory injects (alpha, Eq. 7). Here it also scales the new pairs of the
    feed-forward networks, so that an input below the ramps of ``fact`` keeps the unedited model's answer, bit for bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from unike.backbones.forward.context import Prefill, Reading
from unike.backbones.forward.hooks import Args, Hooks, Kwargs, first_input
from unike.core.errors import UnikeError
from unike.edits.group import Group

GATE_LAST, GATE_WHOLE = "gate.keys", "gate.whole"
"""An edit's keys, ``[B, 1, D]`` each: what its own question was read as, see `Reading`."""


NOT_REACHED = (
    "the gate is read at layer {layer}, which this pass has not reached: split the forward pass no higher than there"
)


class Openings(NamedTuple):
    """How far inputs are about each of G edits, ``[..., G]`` each, in 0..1."""

    question: Tensor
    """Whether it is the edit's kind of question."""

    fact: Tensor
    """Whether it is about what the edit is about, whatever is asked."""

    gate: Tensor
    """Whether it is the edit's own question about it."""


@dataclass(frozen=True)
class Ramp:
    """From 0 up to ``low`` to 1 from ``high`` on.

    Raises:
        ValueError: Nothing or everything would pass.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")

    def __call__(self, s: Tensor) -> Tensor:
        """Elementwise."""
        return ((s - self.low) / (self.high - self.low)).clamp(0, 1)

    @classmethod
    def between(cls, *ends: float) -> Self:
        """A ramp between two ends, whichever is the lower; they are moved apart if it would be a step."""
        middle, half = sum(ends) / 2, max((max(ends) - min(ends)) / 2, MIN_RAMP / 2)
        return cls(middle - half, middle + half)


MIN_RAMP = 0.02
"""Of a ramp between two sorts of inputs that lie so close that it would be a step."""


@dataclass(frozen=True)
class RisingRamp:
    """A ramp for each size of a stack: an input that is about none of G edits has G chances to be taken for one.

    Each edit may therefore take only ``1 / G`` as many of them (Bonferroni's correction).

    Args:
        low: Where ramps begin in stacks of 1, 2, 4, 8, ... edits.
        high: Where they end.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def of(self, n_edits: int) -> Ramp:
        """The ramp of each edit in a stack of ``n_edits``; in larger stacks than were calibrated it rises no more."""
        doublings = np.log2(n_edits), range(len(self.low))
        return Ramp(*(float(np.interp(*doublings, ends)) for ends in (self.low, self.high)))


@dataclass(frozen=True, eq=False)
class Gate:
    """The gate of a backbone; what an edit adds is its key.

    Args:
        layer: Where states are read, counted from 0; no higher than what is gated.
        mean: ``[D]`` of attention inputs at ``p``.
        whitening: ``[D, D]``, their covariance to the power -1/2, shrunken.
        question: Ramp of the centred cosine.
        fact: Ramps of the whitened cosine.
    """

    layer: int
    mean: Tensor
    whitening: Tensor
    question: Ramp
    fact: RisingRamp

    TENSORS: ClassVar[tuple[str, ...]] = ("mean", "whitening")

    def settings(self) -> dict[str, Any]:
        """What it is beside `tensors`, as JSON has it."""
        return {"layer": self.layer, "question": astuple(self.question), "fact": asdict(self.fact)}

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return {name: getattr(self, name) for name in self.TENSORS}

    @classmethod
    def of(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The reverse of `settings` and `tensors`.

        Raises:
            LookupError, TypeError, ValueError: Something is missing or makes no sense.
        """
        mean, whitening = (tensors[name] for name in cls.TENSORS)
        fact = RisingRamp(*(tuple(settings["fact"][end]) for end in ("low", "high")))
        return cls(settings["layer"], mean, whitening, Ramp(*settings["question"]), fact)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self.of(self.settings(), {name: tensor.to(device) for name, tensor in self.tensors().items()})

    def similarities(self, keys: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Centred and whitened cosine of ``keys [..., G, D]`` with ``states [..., D]``: ``[..., G]`` each."""
        keys, states = keys.float() - self.mean, states.float() - self.mean
        return _cosine(keys, states), _cosine(keys @ self.whitening, states @ self.whitening)

    @torch.no_grad()
    def openings(
        self, keys: Reading, read: Reading, rivalry: float | None = None, present: Tensor | None = None
    ) -> Openings:
        """The decision: from what was read of edits' own questions and of inputs, to how far each edit is called upon.

        Args:
            keys: Of G edits, ``[..., G, D]`` each.
            read: Of the inputs, ``[..., D]`` each.
            rivalry: How far an edit may be behind the one that is most like an input; without it no edit competes.
            present: ``[..., G]`` bool, which edits there are for each input; None for all.
        """
        centred, whitened = self.similarities(keys.last, read.last)
        question = self.question(centred)
        fact, own = self.fact.of(1)(whitened), self._own(whitened, present)
        if rivalry is not None:
            alike = whitened + WHOLE * overall(keys.whole, read.whole, present)
            nearest = compete(alike if present is None else alike.masked_fill(~present, -torch.inf), rivalry)
            fact, own = fact * nearest, own * nearest
        openings = Openings(question, fact, question * own)
        if present is None:
            return openings
        return Openings(*(each.masked_fill(~present, 0) for each in openings))

    def _own(self, whitened: Tensor, present: Tensor | None) -> Tensor:
        """The ramp of an edit's own questions, which rises with the number of edits there are."""
        if present is None:
            return self.fact.of(whitened.shape[-1])(whitened)
        counts = present.sum(dim=-1).clamp(min=1)
        ramps = {count: self.fact.of(count)(whitened) for count in counts.unique().tolist()}
        own = torch.zeros_like(whitened)
        for count, opened in ramps.items():
            own = torch.where((counts == count).unsqueeze(-1), opened, own)
        return own


def install_gate(gate: Gate, group: Group, hooks: Hooks, prefill: Prefill) -> Callable[[], Openings]:
    """Let a pass read how far its prompts are about each edit of a stack: once, from the prompts alone.

    Args:
        gate: Of the backbone.
        group: The edits.
        hooks: Where the hook is kept.
        prefill: The pass; one that was stopped above the gate's layer brings the reading along.

    Returns:
        Gives the openings of the rows that the model runs on, ``[R, G]`` each; to be asked from that layer on.
    """
    keys = Reading(group.side_by_side(GATE_LAST), group.side_by_side(GATE_WHOLE))
    opened: list[Openings] = []

    def openings() -> Openings:
        if not opened:
            read = prefill.readings.get(gate.layer)
            if read is None:
                raise UnikeError(NOT_REACHED.format(layer=gate.layer))
            repeats = len(read.last) // group.rows
            last, whole = (each.repeat_interleave(repeats, dim=0) for each in keys)  # [R, G, D]
            present = group.present_on(len(read.last))
            opened.append(gate.openings(Reading(last, whole), read, group.config.gate.rivalry, present))
            prefill.note("gate", opened[0].gate.amax(dim=1))
            prefill.note("fact", opened[0].fact.amax(dim=1))
        return opened[0]

    def read_prompts(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        if not opened:
            prefill.read(gate.layer, first_input(args, kwargs))
            openings()

    hooks.add_pre(group.backbone.attention(gate.layer).module, read_prompts)
    return openings


def compete(similarities: Tensor, rivalry: float) -> Tensor:
    """From 1 for the edit that is most like an input, and any as like, to 0 for those ``rivalry`` behind.

    Args:
        similarities: ``[..., G]``, of an input with each of G edits.
        rivalry: Above 0; the less, the fewer edits have a say.
    """
    return (1 - (similarities.amax(dim=-1, keepdim=True) - similarities) / rivalry).clamp(min=0)


WHOLE = 2.0
"""How many times as much as the whitened cosine the likeness of whole prompts counts where edits compete."""

ALIKE = 0.05
"""Edits whose prompts' means lie closer to each other than this, of their own length, are not told apart by them."""


def overall(keys: Tensor, states: Tensor, present: Tensor | None = None) -> Tensor:
    """How alike whole prompts are to those of G edits: the cosine of their mean states, minus the edits' own mean.

    What the edits of a stack have in common does not tell them apart. Where nothing else is left (an edit alone, the
    same fact twice), rounding must not: differences below `ALIKE` count for as much less as they are smaller.

    Args:
        keys: ``[..., G, D]``, means over the prompts of edits.
        states: ``[..., D]``, of inputs.
        present: As in `Gate.openings`.

    Returns:
        ``[..., G]``, in -1..1.
    """
    common = keys.mean(dim=-2, keepdim=True)
    if present is not None:
        here = present.unsqueeze(-1)
        common = keys.masked_fill(~here, 0).sum(dim=-2, keepdim=True) / here.sum(dim=-2, keepdim=True).clamp(min=1)
    apart = torch.cat([keys, states.unsqueeze(-2)], dim=-2) - common  # [..., G + 1, D]
    least = ALIKE * common.norm(dim=-1, keepdim=True)
    units = apart / apart.norm(dim=-1, keepdim=True).maximum(least)
    return (units[..., :-1, :] @ units[..., -1, :].unsqueeze(-1)).squeeze(-1)


def _cosine(keys: Tensor, states: Tensor) -> Tensor:
    units = torch.nn.functional.normalize(keys, dim=-1), torch.nn.functional.normalize(states, dim=-1)
    return (units[0] @ units[1].unsqueeze(-1)).squeeze(-1)
