"""How well the gate keeps K edits apart, and from what none of them is about: on ``dev``, without making an edit.

    python benchmarks/gate.py --limit 60

For stacks of each size: how often the gate of an edit is more than half open for its own rephrasings and other
pictures, and that of any edit of the stack for an unrelated picture; and how often an edit is the nearest of its stack,
by the whitened cosine at the prompt's end, by the whole prompt, and by both.
"""

import argparse
import json
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from unike.backbones import load_backbone
from unike.backbones.adapter import Backbone
from unike.data.datasets.base import open_dataset
from unike.data.queries import EditCase, Query
from unike.editors.unike.config import UniKEConfig
from unike.editors.unike.gate import WHOLE, Gate, Reading, overall
from unike.editors.unike.knowledge import knowledge_of

OWN, UNRELATED = ("t_generality", "m_generality"), "m_locality"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--datasets", nargs="+", default=["pocket-vqa", "pocket-caption"])
    parser.add_argument("--limit", type=int, default=60, help="dev cases of each data set")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 20, 60])
    args = parser.parse_args()

    backbone = load_backbone(args.model)
    gate = knowledge_of(backbone).gate
    assert gate is not None, "the model was prepared without a gate"
    for dataset in args.datasets:
        cases = open_dataset(dataset).cases("dev")
        random.Random(0).shuffle(cases)
        states = read(backbone, gate, cases[: args.limit])
        for size in args.sizes:
            print(json.dumps({"dataset": dataset, "edits": size} | measure(gate, states, size)))


@torch.no_grad()
def read(backbone: Backbone, gate: Gate, cases: Sequence[EditCase]) -> dict[str, Reading]:
    """Of the edits and of a probe of each kind, ``[C, D]`` each."""
    asked = {"edit": [case.edit for case in cases]}
    for kind in (*OWN, UNRELATED):
        asked[kind] = [next(probe.query for probe in case.probes if probe.kind == kind) for case in cases]

    def states(queries: list[Query]) -> Reading:
        parts = [queries[start : start + 16] for start in range(0, len(queries), 16)]
        read = [gate.read(backbone, backbone.run_to_split(backbone.encode(part), 0)) for part in parts]
        return Reading(*(torch.cat(each) for each in zip(*read, strict=True)))

    return {kind: states(queries) for kind, queries in asked.items()}


def measure(gate: Gate, states: dict[str, Reading], size: int) -> dict[str, float | list[float]]:
    """Percentages over stacks that tile the cases."""
    keys, rivalry, ramp = states["edit"], UniKEConfig().rivalry, gate.fact.of(size)
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(keys.last) - size + 1, size):
        stack = slice(start, start + size)
        for kind in OWN:
            asked = Reading(*(each[stack] for each in states[kind]))
            last, whole = (each[stack].expand(size, -1, -1) for each in keys)
            alike, whitened = overall(whole, asked.whole), gate.similarities(last, asked.last)[1]
            own = gate.opened(last, asked.last, alike, rivalry).gate.diagonal() > 0.5
            found.setdefault(kind, []).append(own)
            for name, near in (("end", whitened), ("whole", alike), ("both", whitened + WHOLE * alike)):
                nearest = near.argmax(dim=1) == torch.arange(size)
                found.setdefault(f"{kind} nearest, {name}", []).append(nearest)
        others = states[UNRELATED]
        last, whole = (each[stack].expand(len(others.last), -1, -1) for each in keys)
        every = gate.opened(last, others.last, overall(whole, others.whole), rivalry).gate
        found.setdefault(UNRELATED, []).append(every.amax(dim=1) > 0.5)
    shares = {kind: round(100 * torch.cat(parts).float().mean().item(), 1) for kind, parts in found.items()}
    return {"ramp": [round(ramp.low, 3), round(ramp.high, 3)], **shares}


if __name__ == "__main__":
    main()
