"""Where the gate is read and where it opens: what tells rephrasings from other questions on cases of a train split."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unike.backbones.adapter import Backbone
from unike.backbones.forward.hooks import trace
from unike.core.errors import UnikeError
from unike.data.leaks import LeakGuard
from unike.data.queries import EditCase, Query
from unike.data.sampling import evenly
from unike.editors.unike.calibration import OTHER_FACTS, RELATED, calibrate, separation
from unike.editors.unike.gate import Gate
from unike.editors.unike.prepare.config import PrepareConfig
from unike.editors.unike.prepare.work import Work


def find_gate(work: Work, cases: Sequence[EditCase], guard: LeakGuard) -> tuple[Gate | None, dict[str, Any]]:
    """Calibrate the gate at each layer where it may be read, and take the one that tells inputs apart best.

    Returns:
        The gate, and, for each layer, how well it does (see `separation`), on the cases it was calibrated on. None
        where there are no cases, or these have no rephrasings or nothing that is to stay as it is.
    """
    config = work.config
    clean = guard.clean(cases)
    chosen = [clean[i] for i in evenly(len(clean), config.gate_cases)]
    kinds = {probe.kind for case in chosen for probe in case.probes}
    if not all(kinds & set(needed) for needed in (RELATED, OTHER_FACTS)):
        return None, {}
    layers = gate_layers(work.backbone, config)
    batches = batches_of(chosen, config.rows)
    states = read_batches(work, batches, layers, guard)
    asked = [question for batch in batches for question in batch]
    gates = {}
    for layer in layers:
        keys, probes = by_kind(asked, states[layer])
        gate = calibrate(layer, keys, probes, config.gate_error)
        gates[layer] = (separation(gate, keys, probes), gate)
    best = max(gates, key=lambda layer: gates[layer][0])
    separated = {str(layer): round(value, 4) for layer, (value, _) in gates.items()}
    return gates[best][1], {"cases": len(chosen), "layer": best, "separation": separated}


def gate_layers(backbone: Backbone, config: PrepareConfig) -> list[int]:
    """Where the gate may be read, counted from 0, none above the lowest edited layer."""
    lowest = min(map(backbone.layer_index, config.layers))
    if config.gate_layers is not None:
        chosen = sorted({backbone.layer_index(layer) for layer in config.gate_layers})
        if any(layer > lowest for layer in chosen):
            raise UnikeError(f"gate_layers: layer {chosen[-1]} is above the lowest edited layer, {lowest}")
        return chosen
    deepest = min(lowest, round(0.6 * backbone.n_layers))
    return sorted({round(deepest + (lowest - deepest) * part / 4) for part in range(5)})


class Asked(NamedTuple):
    """A query of a case, with what it is to it: ``"edit"``, or the kind of a probe."""

    case: int
    kind: str
    query: Query


def batches_of(cases: Sequence[EditCase], rows: int) -> list[list[Asked]]:
    """Everything that cases ask; with a picture first, and then without: some families cannot mix the two."""
    asked = [
        Asked(number, kind, query)
        for number, case in enumerate(cases)
        for kind, query in [("edit", case.edit), *((probe.kind, probe.query) for probe in case.probes)]
    ]
    pictured, bare = ([one for one in asked if (one.query.image is None) is without] for without in (False, True))
    return [some[start : start + rows] for some in (pictured, bare) for start in range(0, len(some), rows)]


def read_batches(
    work: Work, batches: Sequence[Sequence[Asked]], layers: Sequence[int], guard: LeakGuard
) -> dict[int, Tensor]:
    """Attention inputs at ``p`` of everything that is asked, in that order: ``[n, D]`` for each layer."""
    states: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for done, batch in enumerate(batches, 1):
        queries = [asked.query for asked in batch]
        shown = [(query.prompt, query.image and guard.hashes[query.image].content) for query in queries]
        read = partial(read_prompts, work.backbone, queries, layers)
        tensors, _ = work.once(f"gate-{done:05}", [layers, shown], read)
        for layer in layers:
            states[layer].append(tensors[str(layer)])
        work.progress("reading probes", done, len(batches))
    return {layer: torch.cat(parts) for layer, parts in states.items()}


@torch.no_grad()
def read_prompts(backbone: Backbone, queries: Sequence[Query], layers: Sequence[int]) -> tuple[dict[str, Tensor], None]:
    """Attention inputs at ``p`` of some layers, ``[B, D]`` fp32 each."""
    batch = backbone.encode([query.question for query in queries])
    with trace([backbone.attention(layer).module for layer in layers], stop="input", prepend=True) as records:
        backbone.forward(batch)
    prefill = batch.prefill()
    return {
        str(layer): prefill.at_prompt_last(record.input).float() for layer, record in zip(layers, records, strict=True)
    }, None


def by_kind(asked: Sequence[Asked], states: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """States of edits, ``[C, D]``, and of each kind of probe with the cases they belong to."""
    cases = torch.tensor([one.case for one in asked])
    sorted_states = {}
    for kind in sorted({one.kind for one in asked}):
        rows = torch.tensor([row for row, one in enumerate(asked) if one.kind == kind])
        sorted_states[kind] = (cases[rows], states[rows])
    return sorted_states.pop("edit")[1], sorted_states
