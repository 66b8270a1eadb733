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
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import Args, Hooks, Kwargs, first_input
from unike.backbones.forward.split import SplitState
from unike.core.errors import UnikeError
from unike.editors.unike.memory import current_prefill


class Reading(NamedTuple):
    """What the gate reads of an input, the attention's inputs at its layer; of a fact, the edit's key."""

    last: Tensor
    """``[B, D]`` fp32, at the last prompt token ``p``."""

    whole: Tensor
    """``[B, D]`` fp32, the mean over the prompt, its picture included."""


class Opening(NamedTuple):
    """How far inputs are about each of G edits, ``[..., G]`` each, in 0..1."""

    question: Tensor
    """Whether it is the edit's kind of question."""

    fact: Tensor
    """Whether it is about what the edit is about, whatever is asked."""

    gate: Tensor
    """Whether it is the edit's own question about it."""


@dataclass(frozen=True)
class Gate:
    """How far each row the model runs on is about each of G edits; only to be asked while it runs.

    Args:
        read: Returns all of it, ``[R, G]`` each.
    """

    read: Callable[[], Opening]

    def __call__(self) -> Tensor:
        """The gate alone."""
        return self.read().gate


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


RELATED, OTHER_FACTS = ("t_generality", "m_generality"), ("m_locality", "t_locality")
"""Kinds of probes that an edit is about, and that are about something else."""


@dataclass(frozen=True, eq=False)
class Relevance:
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
    def __call__(self, keys: Tensor, states: Tensor) -> Tensor:
        """The gate: keys ``[..., G, D]`` and attention inputs at ``p``, ``[..., D]``, to ``[..., G]``."""
        return self.opened(keys, states).gate

    def opened(
        self, keys: Tensor, states: Tensor, whole: Tensor | float = 0.0, rivalry: float | None = None
    ) -> Opening:
        """The gate and its factors.

        Args:
            keys: As in `__call__`.
            states: As in `__call__`.
            whole: ``[..., G]``, see `overall`.
            rivalry: As in `compete`; without it no edit competes.
        """
        centred, whitened = self.similarities(keys, states)
        question, n_edits = self.question(centred), keys.shape[-2]
        fact, own = self.fact.of(1)(whitened), self.fact.of(n_edits)(whitened)
        if rivalry is not None:
            nearest = compete(whitened + WHOLE * whole, rivalry)
            fact, own = fact * nearest, own * nearest
        return Opening(question, fact, question * own)

    @torch.no_grad()
    def read(self, backbone: Backbone, state: SplitState) -> Reading:
        """The key of each fact.

        Args:
            backbone: The model.
            state: The facts, run to the gate's layer or a lower one.
        """
        state = backbone.advance(state, self.layer)
        states: Tensor = backbone.input_norm(self.layer)(state.hidden)
        prefill = state.prefill()
        return Reading(prefill.at_prompt_last(states).float(), prefill.over_prompt(states, self.layer))

    def install(self, keys: Reading, backbone: Backbone, hooks: Hooks, rivalry: float | None = None) -> Gate:
        """Read relevance once for each prefill, from the prompt alone; the hook stays until ``hooks`` are removed.

        Args:
            keys: ``[B, G, D]`` each: row ``r`` of ``R`` is compared with the G edits ``r * B // R``.
            backbone: The model.
            hooks: Where the hook is kept.
            rivalry: As in `opened`.

        Returns:
            The gate, to be given to whatever it is to scale.
        """
        owner = object()

        @torch.no_grad()
        def read(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
            prefill, x = current_prefill(backbone), first_input(args, kwargs)

            def compare() -> Opening:  # not while answers are continued, where ``x`` is a new token alone
                last, whole = (each.repeat_interleave(len(x) // len(each), dim=0) for each in keys)  # [R, G, D]
                alike = overall(whole, prefill.over_prompt(x, self.layer))
                opened = self.opened(last, prefill.at_prompt_last(x), alike, rivalry)
                prefill.note("gate", opened.gate.amax(dim=1))
                prefill.note("fact", opened.fact.amax(dim=1))
                return opened

            prefill.once(owner, compare)

        def missing() -> Opening:
            raise UnikeError(
                f"the gate is read at layer {self.layer}, which this pass has not reached: "
                "split the forward pass no higher than there"
            )

        hooks.add_pre(backbone.attention(self.layer).module, read)
        return Gate(lambda: current_prefill(backbone).once(owner, missing))


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


def overall(keys: Tensor, states: Tensor) -> Tensor:
    """How alike whole prompts are to those of G edits: the cosine of their mean states, minus the edits' own mean.

    What the edits of a stack have in common does not tell them apart. Where nothing else is left (an edit alone, the
    same fact twice), rounding must not: differences below `ALIKE` count for as much less as they are smaller.

    Args:
        keys: ``[..., G, D]``, means over the prompts of edits.
        states: ``[..., D]``, of inputs.

    Returns:
        ``[..., G]``, in -1..1.
    """
    common = keys.mean(dim=-2, keepdim=True)
    apart = torch.cat([keys, states.unsqueeze(-2)], dim=-2) - common  # [..., G + 1, D]
    least = ALIKE * common.norm(dim=-1, keepdim=True)
    units = apart / apart.norm(dim=-1, keepdim=True).maximum(least)
    return (units[..., :-1, :] @ units[..., -1, :].unsqueeze(-1)).squeeze(-1)


def _cosine(keys: Tensor, states: Tensor) -> Tensor:
    units = torch.nn.functional.normalize(keys, dim=-1), torch.nn.functional.normalize(states, dim=-1)
    return (units[0] @ units[1].unsqueeze(-1)).squeeze(-1)


def whitening(states: Tensor, shrinkage: float = 0.1) -> tuple[Tensor, Tensor]:
    """Mean ``[D]`` of states ``[T, D]``, and of their covariance ``((1 - s) C + s tr(C) / D I)^(-1/2)``, ``[D, D]``."""
    states = states.double()
    mean = states.mean(dim=0)
    covariance = (states - mean).T @ (states - mean) / len(states)
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    variances, directions = torch.linalg.eigh(
        (1 - shrinkage) * covariance + shrinkage * covariance.diagonal().mean().clamp(min=1e-8) * identity
    )
    return mean.float(), (directions * variances.clamp(min=1e-12).rsqrt() @ directions.T).float()


SIZES = 11
"""Of stacks that ramps are drawn for: 1, 2, 4, ... 1024 edits."""

FIRST = 2.5
"""A ramp begins where this many times as many unrelated inputs lie beyond it as lie beyond its end."""


def calibrate(layer: int, keys: Tensor, probes: Mapping[str, tuple[Tensor, Tensor]], error: float = 0.02) -> Relevance:
    """Where to draw the line, from cases that are not evaluated on.

    The centred cosine has to tell rephrasings from other questions about the same picture (``specificity``), the
    whitened one keeps out other pictures (``m_locality``, or ``t_locality`` where there are none). Every edit is
    compared with those of every case, enough to say what one pair in thousands is like.

    Args:
        layer: Where the states were read.
        keys: ``[C, D]``, of the edits.
        probes: Kind of probe to which case it belongs to, ``[n]``, and its state, ``[n, D]``.
        error: The share of either sort that may lie beyond the ends of ``question``, and the share of unrelated inputs
            that may pass any edit of a stack entirely.
    """
    everything = torch.cat([keys, *(states for _, states in probes.values())])
    mean, whitener = whitening(everything)
    unset = Relevance(layer, mean, whitener, Ramp(-2.0, -1.5), RisingRamp((-2.0,), (-1.5,)))

    def centred(kinds: tuple[str, ...]) -> Tensor:
        return torch.cat([unset.similarities(keys[i].unsqueeze(1), x)[0][:, 0] for i, x in of_kinds(kinds, probes)])

    related = centred(RELATED).quantile(error).item()
    unrelated = centred(("specificity",) if "specificity" in probes else OTHER_FACTS).quantile(1 - error).item()
    others = next(states for _, states in of_kinds(OTHER_FACTS, probes))
    chance = unset.similarities(keys, others)[1].flatten().sort(descending=True).values

    def ends(share: float) -> list[float]:
        return [chance[round(share / 2**size * (len(chance) - 1))].item() for size in range(SIZES)]

    low, high = ends(FIRST * error), ends(error)
    fact = RisingRamp(tuple(low), tuple(max(pair) for pair in zip(high, (end + MIN_RAMP for end in low), strict=True)))
    return replace(unset, question=Ramp.between(related, unrelated), fact=fact)


def of_kinds(kinds: tuple[str, ...], probes: Mapping[str, tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The probes of some kinds that there are."""
    return [probes[kind] for kind in kinds if kind in probes]


JUDGED_AT = (1, 16)
"""Sizes of stacks at which a gate is judged."""


def separation(relevance: Relevance, keys: Tensor, probes: Mapping[str, tuple[Tensor, Tensor]]) -> float:
    """How well a gate does, 0..1: its mean over rephrasings, minus its mean over what an edit should leave alone.

    With the ramps of `JUDGED_AT`, on average: a single edit's is passed easily, a stack's shows how far apart they lie.
    """
    separated = []
    for size in JUDGED_AT:
        ramp = relevance.fact.of(size)
        gate = replace(relevance, fact=RisingRamp((ramp.low,), (ramp.high,)))
        opened = {kind: gate(keys[i].unsqueeze(1), x).mean().item() for kind, (i, x) in probes.items()}
        sorts = (
            [opened[kind] for kind in kinds if kind in opened] for kinds in (RELATED, ("specificity", *OTHER_FACTS))
        )
        related, unrelated = (sum(found) / len(found) for found in sorts)
        separated.append(related - unrelated)
    return sum(separated) / len(separated)
