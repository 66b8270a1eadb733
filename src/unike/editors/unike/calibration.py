"""Where the gate's lines are drawn, from cases that are not evaluated on."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from unike.backbones.forward.context import Reading
from unike.editors.common.covariance import whitening
from unike.editors.unike.gate import MIN_RAMP, Gate, Ramp, RisingRamp

RELATED, OTHER_FACTS = ("t_generality", "m_generality"), ("m_locality", "t_locality")
"""Kinds of probes that an edit is about, and that are about something else."""


SIZES = 11
"""Of stacks that ramps are drawn for: 1, 2, 4, ... 1024 edits."""

FIRST = 2.5
"""A ramp begins where this many times as many unrelated inputs lie beyond it as lie beyond its end."""


def calibrate(layer: int, keys: Tensor, probes: Mapping[str, tuple[Tensor, Tensor]], error: float = 0.02) -> Gate:
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
    unset = Gate(layer, mean, whitener, Ramp(-2.0, -1.5), RisingRamp((-2.0,), (-1.5,)))

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


def separation(drawn: Gate, keys: Tensor, probes: Mapping[str, tuple[Tensor, Tensor]]) -> float:
    """How well a gate does, 0..1: its mean over rephrasings, minus its mean over what an edit should leave alone.

    With the ramps of `JUDGED_AT`, on average: a single edit's is passed easily, a stack's shows how far apart they lie.
    """
    separated = []
    for size in JUDGED_AT:
        ramp = drawn.fact.of(size)
        gate = replace(drawn, fact=RisingRamp((ramp.low,), (ramp.high,)))
        opened = {kind: _opened(gate, keys[i].unsqueeze(1), x).mean().item() for kind, (i, x) in probes.items()}
        sorts = (
            [opened[kind] for kind in kinds if kind in opened] for kinds in (RELATED, ("specificity", *OTHER_FACTS))
        )
        related, unrelated = (sum(found) / len(found) for found in sorts)
        separated.append(related - unrelated)
    return sum(separated) / len(separated)


def _opened(gate: Gate, keys: Tensor, states: Tensor) -> Tensor:
    """The gate of edits that do not compete, where only the prompts' last states were read."""
    return gate.openings(Reading(keys, keys), Reading(states, states)).gate
