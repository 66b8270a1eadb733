"""What the gate lets in and what it keeps out, for edits alone and in stacks: without making an edit.

    python benchmarks/gate.py --split dev

Every case's edit is read as an edit is, every probe as a question is. For stacks of each size that tile the cases, the
share of probes of each kind for which the gate of an edit that is wanted is open, or, where none is wanted, that of any
edit of the stack: rephrased questions and other pictures should be near 100, everything else near 0. Beside it both
halves of the gate apart, for one edit.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from unike.backbones import load_backbone
from unike.backbones.adapter import Backbone
from unike.data.datasets.base import open_dataset
from unike.data.queries import EditCase, Query, probe_kinds
from unike.editors.unike.config import UniKEConfig
from unike.editors.unike.gate import Gate
from unike.editors.unike.knowledge import knowledge_of
from unike.editors.unike.likeness import KEPT, Reading

ROWS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--datasets", nargs="+", default=["pocket2-vqa", "pocket2-caption", "pocket2-text"])
    parser.add_argument("--split", default="dev")
    parser.add_argument("--limit", type=int, help="cases of each data set")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 60, 500])
    args = parser.parse_args()

    backbone = load_backbone(args.model)
    gate = knowledge_of(backbone).gate
    assert gate is not None, "the model was prepared without a gate"
    for dataset in args.datasets:
        cases = open_dataset(dataset).cases(args.split)
        random.Random(0).shuffle(cases)
        keys, probes = read(backbone, gate, cases[: args.limit])
        for size in args.sizes:
            if size <= len(keys.asked):
                print(json.dumps({"dataset": dataset, "edits": size} | measure(gate, keys, probes, size)), flush=True)


@torch.no_grad()
def read(
    backbone: Backbone, gate: Gate, cases: Sequence[EditCase]
) -> tuple[Reading, dict[str, tuple[Tensor, Reading]]]:
    """What edits keep, ``[C, n]`` each; and of each kind of probe the cases it belongs to, ``[m]``, and its reading."""

    def prefills(queries: Sequence[Query]) -> list[tuple[Tensor, ...]]:
        order = sorted(range(len(queries)), key=lambda i: queries[i].image is None)
        found: dict[int, tuple[Tensor, ...]] = {}
        for picture in (True, False):
            some = [i for i in order if (queries[i].image is not None) == picture]
            for start in range(0, len(some), ROWS):
                rows = some[start : start + ROWS]
                state = backbone.run_to_split(backbone.encode([queries[i].question for i in rows]), 0)
                kept = gate.keys(backbone, state.prefill())
                parts = [*gate.read(backbone, state.prefill()), *(kept[name][:, 0] for name in KEPT)]
                found |= {i: tuple(part[row] for part in parts) for row, i in enumerate(rows)}
        return [found[i] for i in range(len(queries))]

    edits = prefills([case.edit for case in cases])
    keys = Reading(*(torch.stack([edit[len(KEPT) + i] for edit in edits]) for i in range(len(KEPT))))
    by_kind: dict[str, list[tuple[int, Query]]] = defaultdict(list)
    for number, case in enumerate(cases):
        by_kind["reliability"].append((number, case.edit))
        for probe in case.probes:
            by_kind[probe.kind].append((number, probe.query))
    probes = {}
    for kind, asked in by_kind.items():
        rows = prefills([query for _, query in asked])
        read = Reading(*(torch.stack([row[i] for row in rows]) for i in range(len(KEPT))))
        probes[kind] = (torch.tensor([number for number, _ in asked]), read)
    return keys, probes


def measure(gate: Gate, keys: Reading, probes: dict[str, tuple[Tensor, Reading]], size: int) -> dict[str, object]:
    """Percentages over stacks that tile the cases."""
    rivalry, kinds = UniKEConfig().gate.rivalry, probe_kinds()
    opened: dict[str, list[Tensor]] = defaultdict(list)
    for start in range(0, len(keys.asked) - size + 1, size):
        stack = Reading(*(each[start : start + size] for each in keys))
        for kind, (cases, asked) in probes.items():
            own = ((cases >= start) & (cases < start + size)).nonzero()[:, 0]
            read = Reading(*(each[own] for each in asked))
            found = gate.openings(Reading(*(each.expand(len(own), -1, -1) for each in stack)), read, rivalry)
            wanted = kinds[kind].expects == "target" and kind != "portability"
            rows = torch.arange(len(own))
            for name, each in found._asdict().items():
                if name == "gate" or size == 1:
                    open_for = each[rows, cases[own] - start] if wanted else each.amax(dim=1)
                    opened[kind if name == "gate" else f"{kind} ({name})"].append(open_for > 0.5)
    shares = {kind: round(100 * torch.cat(parts).float().mean().item(), 1) for kind, parts in opened.items()}
    half = {kind: 0.0 for kind in shares}
    return {kind: shares[kind] for kind in sorted(half, key=lambda k: ("(" in k, k))}


if __name__ == "__main__":
    main()
